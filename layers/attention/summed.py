"""Attention whose state is a set of sums over tokens, of a size that does not depend on the length: the common part of
linear attention (:mod:`layers.attention.linear`), normalized attention (:mod:`layers.attention.normalized`) and flow
attention (:mod:`layers.attention.flow`).

    y_i = f(q_i, sum_j g(k_j) h(v_j)^T)        over all j, or over j <= i if causal

A subclass defines the sums and how they are combined; each sum is one call of the op
:func:`pallas_kernels.linear_attention`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import struct

from layers.attention.projected import ProjectedAttention, RotaryHeadOptions
from layers.tokens import Continuation, Tokens
from pallas_kernels import linear_attention


@struct.dataclass
class SumsState:
    """State of each row's current document.

    Attributes:
      sums: by name, (batch, *shape) of :meth:`SummedAttention.sum_shapes`, at least float32.
      length: (batch,) int32, tokens of the document read so far.
      segment: (batch,) int32, id of the document.
    """

    sums: dict[str, jax.Array]
    length: jax.Array
    segment: jax.Array


class Reading:
    """The sums over one piece of each row.

    Attributes:
      tokens: mask, positions and segments of the tokens.
      starts: bool (batch, length), True where a document begins; None if none begins in this piece.
      before: sums over the tokens before this piece, by name; None if there are none.
      segment: (batch,) int32, id of the document of these tokens; None if there are none.
      after: sums including this piece, by name; filled only if there are sums ``before``.
    """

    def __init__(
        self,
        tokens: Tokens,
        length: int,
        *,
        causal: bool,
        state: SumsState | None = None,
        positions: jax.Array | None = None,
    ):
        """Args:
        length: number of tokens of the piece.
        causal: whether each token sees only those up to itself.
        state: sums over the tokens read before; None for a whole sequence.
        positions: (batch, length), positions of the tokens in their documents; required with a state.
        """
        self.tokens, self.before, self.after = tokens, None if state is None else state.sums, dict[str, jax.Array]()
        self.segment = None if state is None else state.segment
        self.starts = tokens.starts(self.segment)
        self._length, self._causal, self._positions = length, causal, positions

    def count(self) -> jax.Array:
        """Int32 (batch or 1, length), the number of tokens that each token sees."""
        if self._positions is None:
            return self.tokens.count(self._length, causal=self._causal)
        return self._positions + 1

    def places(self) -> jax.Array:
        """Int32 (batch or 1, length), positions of the tokens in their documents."""
        counted = self._positions
        return self.tokens.places(self._length) if counted is None else self.tokens.positions_or(counted)

    def heads_mask(self) -> jax.Array | None:
        """Bool (batch, length, 1), the mask broadcastable over heads, True = real; None if all tokens are real."""
        return None if self.tokens.mask is None else self.tokens.mask[..., None]

    def sum(
        self, name: str, asks: jax.Array, gives: jax.Array, values: jax.Array, decay: jax.Array | None = None
    ) -> jax.Array:
        """The products asks_i . sum_j gives_j values_j^T with the sum called ``name``.

        Args:
          asks, gives: queries and keys (batch, length, heads, key_dim); ``gives`` must be 0 at padding.
          values: (batch, length, heads, value_dim).
          decay: log decay of the sum at each token, of the op's shapes; for a causal sum.

        Returns:
          (batch, length, heads, value_dim).
        """
        options: Any = {"decay": decay, "scale": 1.0, "starts": self.starts}
        if self.before is None:
            return linear_attention(asks, gives, values, causal=self._causal, **options)
        before = self.before[name]
        found, after = linear_attention(asks, gives, values, initial_state=before, return_state=True, **options)
        self.after[name] = after.astype(before.dtype)
        return found


class SummedAttention(ProjectedAttention):
    """Base class of attention whose state holds only sums. A subclass defines :meth:`sum_shapes` and :meth:`attend`."""

    supports_causal = True
    takes_positions = True
    weighs_values = True

    def __init__(self, features: int, *, causal: bool = False, **options: Unpack[RotaryHeadOptions]):
        """Args:
        options: as in :class:`ProjectedAttention`.
        """
        super().__init__(features, **options)
        self.causal = causal

    @property
    def complexity(self) -> float:
        return 1.0

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"mask", "segment_ids"} | (set() if self.rotary is None else {"positions"}))

    def sum_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of one row's sums by name: (heads, key_dim, value_dim), or any other for sums that ``attend`` updates
        itself.
        """
        raise NotImplementedError

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, reading: Reading) -> jax.Array:
        """The head outputs, (batch, length, num_heads, head_dim) in v's dtype.

        Args:
          q, k, v: (batch, length, num_heads, head_dim); padding is finite.
          reading: computes the sums by name.
        """
        raise NotImplementedError

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        return self.attend(q, k, v, Reading(tokens, x.shape[1], causal=self.causal))

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> SumsState:
        """An empty state; its size does not depend on the length, and it is never narrower than float32."""
        if not self.causal:
            return super().init_state(batch_size, max_length, dtype)
        wide = jnp.promote_types(dtype, jnp.float32)
        sums = {name: jnp.zeros((batch_size, *shape), wide) for name, shape in self.sum_shapes().items()}
        length, segment = (jnp.zeros((batch_size,), jnp.int32) for _ in range(2))
        return SumsState(sums, length, segment)

    def core_next(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        x: jax.Array,
        tokens: Tokens,
        state: SumsState,
        after: Continuation,
    ) -> tuple[jax.Array, SumsState]:
        reading = Reading(tokens, x.shape[1], causal=True, state=state, positions=after.positions)
        y = self.attend(q, k, v, reading)
        return y, SumsState({**state.sums, **reading.after}, after.length, after.segment)
