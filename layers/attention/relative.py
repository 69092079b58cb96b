"""What the distance of a query and a key does to their score, by name.

    alibi     s - slope_h |i - j|                         Press et al., 2022 (arXiv:2108.12409)
    learned   s + b_h[clip(j - i)]
    buckets   s + b_h[bucket(j - i)]                      T5: Raffel et al., 2020 (arXiv:1910.10683), section 2.1
    keys      s + q_i . r[clip(j - i)] / sqrt(head_dim)   Shaw et al., 2018 (arXiv:1803.02155), eq. 5
    universal s + b_h[clip(j - i)], and weights w_ij c_h[clip(j - i)]   URPE: Luo et al., 2022 (arXiv:2205.13401), eq. 5

Each is a module whose :meth:`Relative.changes` are arguments of :func:`pallas_kernels.attention`: no matrix of queries
and keys is made of them, and the attention op decides how to apply them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.initializers import normal, ones, truncated_normal, zeros
from layers.module import Module
from suggestions import near

RelativeSpec = str | Mapping[str, Any] | Callable[..., "Relative"]


class Relative(Module):
    """Base of the modules here. Constructors take ``num_heads``, ``head_dim``, ``causal``, ``param_dtype`` and
    ``rngs``, and what is theirs.
    """

    undecayed: ClassVar[tuple[str, ...]] = ("table",)

    def changes(self) -> dict[str, Any]:
        """Arguments of the attention op."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it changes")


@dataclasses.dataclass(frozen=True)
class DistancePenalty:
    """The score of ALiBi. It compares by value: equal ones share compiled programs."""

    num_heads: int

    def __call__(self, logits: Any, head: Any, q: Any, k: Any) -> Any:
        return logits - jnp.exp2(self.exponent(head)).astype(logits.dtype) * abs(q - k).astype(logits.dtype)

    def exponent(self, head: Any) -> Any:
        """The binary logarithm of a head's slope; of heads beyond a power of two, every other slope of the next power."""
        power = 2 ** int(math.log2(self.num_heads))
        return jnp.where(head < power, -8.0 * (head + 1) / power, -4.0 * (2 * (head - power) + 1) / power)


@dataclasses.dataclass(frozen=True)
class GridPenalty:
    """The score less a slope, which ``rows=`` of the attention op gives for each head, times the distance of two tokens
    of an image.

    Attributes:
      width: columns of the image, whose tokens are in row-major order.
      metric: "manhattan" (rows and columns apart) or "euclidean".
      prefix: tokens before those of the image, which are at no distance.
      rounded: penalties are rounded to bfloat16, as LookHere's authors keep them.
    """

    width: int
    metric: Literal["manhattan", "euclidean"]
    prefix: int = 0
    rounded: bool = False

    def __call__(self, logits: Any, head: Any, q: Any, k: Any, slope: Any) -> Any:
        at = [(x - self.prefix) // self.width for x in (q, k)], [(x - self.prefix) % self.width for x in (q, k)]
        down, across = (abs(a - b).astype(logits.dtype) for a, b in at)
        distance = down + across if self.metric == "manhattan" else jnp.sqrt(down * down + across * across)
        if self.prefix:
            distance = jnp.where((q < self.prefix) | (k < self.prefix), 0, distance)
        penalty = slope * distance
        return logits - (_to_bfloat16(penalty) if self.rounded else penalty)


def _to_bfloat16(x: jax.Array) -> jax.Array:
    """The nearest numbers of bfloat16, in the dtype they are in: by their bits, for compilers leave out a conversion
    that is undone at once."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(x.dtype)


class ALiBi(Relative):
    """A fixed penalty on the score, proportional to distance: slopes are powers of 2^(-8 / heads)."""

    def __init__(self, *, num_heads: int, head_dim: int, causal: bool, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.score = DistancePenalty(num_heads)

    def changes(self) -> dict[str, Any]:
        return {"score": self.score}


class LearnedDistances(Relative):
    """A learned number for each distance up to ``reach`` and head; parameter ``table`` (heads, span), by ascending key
    - query.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        causal: bool,
        reach: int = 128,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        reach: greatest distance with a number of its own; a causal table has none for keys after the query.
        """
        _check_reach(reach)
        span = reach + 1 if causal else 2 * reach + 1
        self.table = nnx.Param(zeros(rngs.params(), (num_heads, span), param_dtype))
        self.origin = -reach

    def changes(self) -> dict[str, Any]:
        return {"relative_bias": self.table[...], "relative_origin": self.origin}


class UniversalDistances(LearnedDistances):
    """A second number for each distance, by which the weight is multiplied after the softmax, so that the weights of a
    query no longer sum to 1; parameters ``table``, of zeros, and ``factor``, of ones, (heads, span).
    """

    undecayed: ClassVar[tuple[str, ...]] = ("table", "factor")

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        causal: bool,
        reach: int = 128,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        reach: greatest distance with numbers of its own.
        """
        heads: dict[str, Any] = {"num_heads": num_heads, "head_dim": head_dim, "causal": causal}
        super().__init__(**heads, reach=reach, param_dtype=param_dtype, rngs=rngs)
        self.factor = nnx.Param(ones(rngs.params(), self.table.shape, param_dtype))

    def changes(self) -> dict[str, Any]:
        return {**super().changes(), "relative_weight": self.factor[...]}


class BucketedDistances(Relative):
    """A learned number for each bucket of distances and head: half of the buckets hold one distance each, the rest are
    logarithmic.

    Parameter ``table`` (buckets, heads), as T5's ``relative_attention_bias``.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        causal: bool,
        buckets: int = 32,
        max_distance: int = 128,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          buckets: half of them are for keys after the query, unless attention is causal.
          max_distance: from which on all distances are in the last bucket.

        Raises:
          ValueError: too few buckets for both kinds of distances, or distances that end before the logarithmic buckets
            begin.
        """
        exact = buckets // (2 if causal else 4)
        if exact < 1 or max_distance <= exact:
            raise ValueError(
                f"{buckets} buckets up to a distance of {max_distance}: there must be {2 if causal else 4} buckets,"
                f" and more than {exact} distances"
            )
        self.table = nnx.Param(normal(0.02)(rngs.params(), (buckets, num_heads), param_dtype))
        self.buckets, self.max_distance, self.causal = buckets, max_distance, causal

    def bucket(self, offset: np.ndarray) -> np.ndarray:
        """The bucket of key position less query position."""
        count = self.buckets if self.causal else self.buckets // 2
        after = np.zeros_like(offset) if self.causal else count * (offset > 0)
        distance = np.maximum(-offset, 0) if self.causal else np.abs(offset)
        exact = count // 2
        ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
            math.log(self.max_distance / exact)
        )
        far = np.minimum(exact + (ratio * (count - exact)).astype(np.int32), count - 1)
        return np.asarray(after + np.where(distance < exact, distance, far))

    def changes(self) -> dict[str, Any]:
        reach = self.max_distance
        offsets = np.arange(-reach, (1 if self.causal else reach + 1))
        return {"relative_bias": self.table[...][self.bucket(offsets)].T, "relative_origin": -reach}


class RelativeKeys(Relative):
    """Learned keys of distances up to ``reach``, which all heads share, beside the tokens' own; parameter ``table``
    (span, head_dim).
    """

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        causal: bool,
        reach: int = 16,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        reach: greatest distance with a key of its own.
        """
        _check_reach(reach)
        span = reach + 1 if causal else 2 * reach + 1
        self.table = nnx.Param(truncated_normal(0.02)(rngs.params(), (span, head_dim), param_dtype))
        self.origin = -reach

    def changes(self) -> dict[str, Any]:
        table: jax.Array = self.table[...]
        return {"relative_keys": table[None], "relative_origin": self.origin}


def _check_reach(reach: int) -> None:
    if reach < 1:
        raise ValueError(f"reach is the greatest distance that counts, at least 1; got {reach}")


KINDS: dict[str, Callable[..., Relative]] = {
    "alibi": ALiBi,
    "buckets": BucketedDistances,
    "keys": RelativeKeys,
    "learned": LearnedDistances,
    "universal": UniversalDistances,
}


def create_relative(spec: RelativeSpec, **common: Any) -> Relative:
    """Makes one of the modules.

    Args:
      spec: a name, ``{"name": ..., **options}``, or a callable that takes ``common``.
      **common: ``num_heads``, ``head_dim``, ``causal``, ``param_dtype`` and ``rngs``.

    Raises:
      ValueError: an unknown name.
    """
    if not isinstance(spec, str | Mapping):
        return spec(**common)
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if name not in KINDS:
        raise ValueError(f"unknown relative={name!r}{near(str(name), KINDS)}; there are {', '.join(KINDS)}")
    return KINDS[name](**common, **options)
