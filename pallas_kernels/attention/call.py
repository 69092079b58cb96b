"""The arguments of attention."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.masks import Mask, Score, narrower, without_windows
from pallas_kernels.call import Call

Reach = tuple[int | None, int | None]
"""(left, right): least and greatest of key position minus query position; None is unbounded."""


@dataclasses.dataclass(frozen=True)
class OfHeads:
    """``score`` for a call with some of the heads: it passes on their original indices ``heads``."""

    score: Score
    heads: tuple[int, ...]

    def __call__(self, logits: Any, head: Any, *others: Any) -> Any:
        number = head * 0 + self.heads[0]
        for i, other in enumerate(self.heads):
            number = jnp.where(head == i, other, number)
        return self.score(logits, number, *others)


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionCall(Call):
    """The arguments of :func:`pallas_kernels.attention.attention`, which describes them.

    Implementations return (batch, q_length, heads, value_dim) in q's dtype, and the log-sum-exp (batch, q_length,
    heads) if requested.

    Attributes:
      bias, bias_rest, mask: (batch, heads, q_length, k_length), each dimension its size or 1.
      pattern: the mask as a function of positions, without windows.
      rows: (batch or 1, q_length, heads or 1, n), the values of all ``rows`` for the score, stacked.
      reach: the window and causality combined.
      finite: whether keys, values and queries are known to be finite also where nothing is attended to, so that no
        implementation needs to look for them: 0 * NaN is NaN.
    """

    axes: ClassVar = {
        "q": "blhd",
        "k": "blhd",
        "v": "blhd",
        "bias": "bhqk",
        "bias_rest": "bhqk",
        "mask": "bhqk",
        "sinks": "h",
        "query_positions": "bq",
        "key_positions": "bk",
        "query_segments": "bl",
        "key_segments": "bl",
        "routes": "bhrt",
        "rows": "blhn",
        "relative_bias": "hs",
        "relative_weight": "hs",
        "relative_keys": "hsd",
        "relative_query": "blhd",
    }
    results = ("blhd", "blh")

    q: jax.Array
    k: jax.Array
    v: jax.Array
    bias: jax.Array | None = None
    bias_rest: jax.Array | None = None
    mask: jax.Array | None = None
    sinks: jax.Array | None = None
    query_positions: jax.Array | None = None
    key_positions: jax.Array | None = None
    query_segments: jax.Array | None = None
    key_segments: jax.Array | None = None
    routes: jax.Array | None = None
    rows: jax.Array | None = None
    relative_bias: jax.Array | None = None
    relative_weight: jax.Array | None = None
    relative_keys: jax.Array | None = None
    relative_query: jax.Array | None = None
    key_regions: int | None = None
    relative_origin: int | None = None
    pattern: Mask | None = None
    score: Score | None = None
    reach: Reach = (None, None)
    scale: float = 1.0
    normalize: str = "softmax"
    return_lse: bool = False
    finite: bool = False

    @property
    def rounded_bias(self) -> jax.Array | None:
        """The bias and its rest as one array, for implementations of 16 bits, whose own rounding is far coarser."""
        return self.bias if self.bias is None or self.bias_rest is None else self.bias + self.bias_rest

    @property
    def bounded(self) -> bool:
        """Whether the mask depends on positions."""
        return self.reach != (None, None) or self.pattern is not None

    @property
    def ordered(self) -> bool:
        """Whether positions matter."""
        return self.bounded or self.score is not None or self.relative

    @property
    def relative(self) -> bool:
        """Whether tables of relative positions are given."""
        return not self.lacks("relative_bias", "relative_weight", "relative_keys")

    def plain(self) -> str | None:
        """Why a kernel without rows, relative tables and plain weights does not support the call, or None."""
        given = [n for n in ("rows", "relative_bias", "relative_weight", "relative_keys") if not self.lacks(n)]
        if given:
            verb = "is" if given[0] in ("relative_bias", "relative_weight") else "are"
            return f"{given[0]} {verb} given, which its tiles don't read"
        return 'its weights are those of softmax or sigmoid, not "none"' if self.normalize == "none" else None

    @property
    def places(self) -> tuple[jax.Array, jax.Array]:
        """Positions of queries and keys, int32 (batch or 1, length); indices where none are given."""
        given = ((self.query_positions, self.q), (self.key_positions, self.k))
        q, k = (jnp.arange(x.shape[1], dtype=jnp.int32)[None] if at is None else at for at, x in given)
        return q, k

    @property
    def segments(self) -> tuple[jax.Array, jax.Array] | None:
        """Segment ids of queries and keys, (batch or 1, length), or None."""
        return (
            None
            if self.query_segments is None or self.key_segments is None
            else (self.query_segments, self.key_segments)
        )

    def of_heads(self, heads: tuple[int, ...]) -> AttentionCall:
        """The call for some of the query heads, each with its own keys and values; a score still receives their
        original indices.
        """
        numbers, count, changes = np.array(heads), self.q.shape[2], {}
        for name, (x, axes) in self.arrays.items():
            axis, own = axes.find("h"), numbers // (count // self.k.shape[2]) if name in ("k", "v") else numbers
            if axis >= 0 and (x.shape[axis] > 1 or name in ("k", "v")):
                changes[name] = jnp.take(x, own, axis, mode="clip")
        return self.replace(**changes, score=self.score and OfHeads(self.score, heads))

    def within(self, mask: Mask) -> AttentionCall:
        """The call restricted by a mask that is a function of positions; its windows become part of the reach."""
        included, pattern = without_windows(mask)
        return self.replace(reach=narrower(self.reach, included), pattern=pattern)

    def lacks(self, *names: str) -> bool:
        """Whether none of these arguments is given."""
        return all(getattr(self, name) is None for name in names)
