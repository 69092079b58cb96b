"""Relative position biases: how the distance between a query and a key changes their logit, by name.

    alibi     s - slope_h |i - j|                         Press et al., 2022 (arXiv:2108.12409)
    learned   s + b_h[clip(j - i)]
    buckets   s + b_h[bucket(j - i)]                      T5: Raffel et al., 2020 (arXiv:1910.10683), section 2.1
    keys      s + q_i . r[clip(j - i)] / sqrt(head_dim)   Shaw et al., 2018 (arXiv:1803.02155), eq. 5
    kerple    s - r_h log(1 + p_h |i - j|)                Kerple: Chi et al., 2022 (arXiv:2205.09921), section 4
              s - r_h |i - j|^p_h                         with kernel="power"
    fire      s + f_h(log(c (i - j) + 1) / log(c max(L, i) + 1))   FIRE: Li et al., 2023 (arXiv:2310.04418), section 3
    universal s + b_h[clip(j - i)], and weights w_ij c_h[clip(j - i)]   URPE: Luo et al., 2022 (arXiv:2205.13401), eq. 5

Each is a module whose :meth:`Relative.changes` are arguments of :func:`pallas_kernels.attention`, which decides how to
apply them: except for FIRE, no matrix of queries and keys is materialized.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Required, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from layers.broadcast import widened
from layers.initializers import constant, normal, ones, truncated_normal, uniform, zeros
from layers.linear import Linear
from layers.module import LayerOptions, Module, of_layers, parameter
from suggestions import near

RelativeSpec = str | Mapping[str, Any] | Callable[..., "Relative"]


class RelativeOptions(LayerOptions, total=False):
    """Options common to the modules here, which compute in float32.

    Keys:
      num_heads, head_dim, causal: those of the attention.
    """

    num_heads: Required[int]
    head_dim: Required[int]
    causal: Required[bool]


class Relative(Module):
    """Base class of the modules here. Constructors take their own options and :class:`RelativeOptions`.

    Attributes:
      scores: it changes the logits by a function, of which the attention op takes only one.
      sees_places: it depends on absolute positions, not only on distances.
    """

    undecayed: ClassVar[tuple[str, ...]] = ("table",)
    scores: ClassVar[bool] = False
    sees_places: ClassVar[bool] = False

    def changes(self, queries: jax.Array, keys: jax.Array) -> dict[str, Any]:
        """Arguments for :func:`pallas_kernels.attention`.

        Args:
          queries, keys: positions of the queries and of the keys, int32 (batch or 1, count).
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it changes")


@dataclasses.dataclass(frozen=True)
class DistancePenalty:
    """The score function of ALiBi. Instances compare by value: equal ones share compiled programs."""

    num_heads: int

    def __call__(self, logits: Any, head: Any, q: Any, k: Any) -> Any:
        return logits - jnp.exp2(self.exponent(head)).astype(logits.dtype) * abs(q - k).astype(logits.dtype)

    def exponent(self, head: Any) -> Any:
        """log2 of a head's slope; heads beyond a power of two get every other slope of the next power."""
        power = 2 ** int(math.log2(self.num_heads))
        return jnp.where(head < power, -8.0 * (head + 1) / power, -4.0 * (2 * (head - power) + 1) / power)


@dataclasses.dataclass(frozen=True)
class GridPenalty:
    """Subtracts slope * distance of two tokens of an image; the attention op passes the slope of each head as
    ``rows=``.

    Attributes:
      width: columns of the image, whose tokens are in row-major order.
      metric: "manhattan" (sum of the distances in rows and in columns) or "euclidean".
      prefix: number of tokens before those of the image; their distance to all tokens is 0.
      rounded: round penalties to bfloat16, as LookHere's authors store them.
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
    """Rounds to the nearest bfloat16 and keeps the dtype. It works on bits because compilers remove a conversion that
    is undone at once.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(x.dtype)


class ALiBi(Relative):
    """A fixed penalty on the logit, proportional to distance: slopes are powers of 2^(-8 / heads)."""

    scores = True

    def __init__(self, **options: Unpack[RelativeOptions]):
        self.score = DistancePenalty(options["num_heads"])

    def changes(self, queries: jax.Array, keys: jax.Array) -> dict[str, Any]:
        return {"score": self.score}


class LearnedDistances(Relative):
    """A learned bias for each head and each distance up to ``reach``; parameter ``table`` (heads, span), in ascending
    order of key position - query position.
    """

    def __init__(self, *, reach: int = 128, **options: Unpack[RelativeOptions]):
        """Args:
        reach: greatest distance with its own bias; greater ones are clipped. A causal table has no entries for keys
          after the query.
        """
        self.table = parameter(zeros, (options["num_heads"], _span(reach, options["causal"])), options)
        self.origin = -reach

    def changes(self, queries: jax.Array, keys: jax.Array) -> dict[str, Any]:
        return {"relative_bias": self.table[...], "relative_origin": self.origin}


class UniversalDistances(LearnedDistances):
    """Also a learned factor for each distance that multiplies the weight after the softmax, so that the weights of a
    query no longer sum to 1; parameters ``table`` (initially 0) and ``factor`` (initially 1), both (heads, span).
    """

    undecayed: ClassVar[tuple[str, ...]] = ("table", "factor")

    def __init__(self, *, reach: int = 128, **options: Unpack[RelativeOptions]):
        """Args:
        reach: greatest distance with its own bias and factor.
        """
        super().__init__(reach=reach, **options)
        self.factor = parameter(ones, self.table.shape, options)

    def changes(self, queries: jax.Array, keys: jax.Array) -> dict[str, Any]:
        return {**super().changes(queries, keys), "relative_weight": self.factor[...]}


class BucketedDistances(Relative):
    """A learned bias for each head and bucket of distances: half of the buckets hold one distance each, the rest are
    logarithmic.

    Parameter ``table`` (buckets, heads), as T5's ``relative_attention_bias``.
    """

    def __init__(self, *, buckets: int = 32, max_distance: int = 128, **options: Unpack[RelativeOptions]):
        """Args:
          buckets: number of buckets; half of them are for keys after the query, unless attention is causal.
          max_distance: distance from which all are in the last bucket.

        Raises:
          ValueError: too few buckets for both kinds, or a ``max_distance`` below the first logarithmic bucket.
        """
        causal = options["causal"]
        exact = buckets // (2 if causal else 4)
        if exact < 1 or max_distance <= exact:
            raise ValueError(
                f"{buckets} buckets up to a distance of {max_distance}: there must be at least {2 if causal else 4} "
                f"buckets, and max_distance above {exact}"
            )
        self.table = parameter(normal(0.02), (buckets, options["num_heads"]), options)
        self.buckets, self.max_distance, self.causal = buckets, max_distance, causal

    def bucket(self, offset: np.ndarray) -> np.ndarray:
        """The bucket of each offset, key position - query position; int of the shape of ``offset``."""
        count = self.buckets if self.causal else self.buckets // 2
        after = np.zeros_like(offset) if self.causal else count * (offset > 0)
        distance = np.maximum(-offset, 0) if self.causal else np.abs(offset)
        exact = count // 2
        ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
            math.log(self.max_distance / exact)
        )
        far = np.minimum(exact + (ratio * (count - exact)).astype(np.int32), count - 1)
        return np.asarray(after + np.where(distance < exact, distance, far))

    def changes(self, queries: jax.Array, keys: jax.Array) -> dict[str, Any]:
        reach = self.max_distance
        offsets = np.arange(-reach, (1 if self.causal else reach + 1))
        return {"relative_bias": self.table[...][self.bucket(offsets)].T, "relative_origin": -reach}


class RelativeKeys(Relative):
    """Learned key vectors for distances up to ``reach``, shared by all heads, in addition to the tokens' keys;
    parameter ``table`` (span, head_dim).
    """

    def __init__(self, *, reach: int = 16, **options: Unpack[RelativeOptions]):
        """Args:
        reach: greatest distance with its own key vector.
        """
        shape = (_span(reach, options["causal"]), options["head_dim"])
        self.table = parameter(truncated_normal(0.02), shape, options)
        self.origin = -reach

    def changes(self, queries: jax.Array, keys: jax.Array) -> dict[str, Any]:
        table: jax.Array = self.table[...]
        return {"relative_keys": table[None], "relative_origin": self.origin}


def _span(reach: int, causal: bool) -> int:
    """Number of entries of a table of distances up to ``reach``."""
    if reach < 1:
        raise ValueError(f"reach is the greatest distance with its own entry, at least 1; got {reach}")
    return reach + 1 if causal else 2 * reach + 1


LEAST = 0.01
"""Lower bound of Kerple's parameters, as in the authors' code."""


@dataclasses.dataclass(frozen=True)
class KernelPenalty:
    """The score function of Kerple; the attention op passes the parameters of each head as ``rows=``."""

    kernel: Literal["log", "power"]

    def __call__(self, logits: Any, head: Any, q: Any, k: Any, weight: Any, rate: Any) -> Any:
        distance = abs(q - k).astype(weight.dtype)
        if self.kernel == "log":
            penalty = jnp.log1p(rate * distance)
        else:  # 0^p has no gradient in p
            penalty = jnp.where(distance > 0, jnp.exp(rate * jnp.log(jnp.maximum(distance, 1))), 0)
        return logits - (weight * penalty).astype(logits.dtype)


class Kerple(Relative):
    """A penalty that grows with the logarithm or a power of the distance; parameters ``weight`` r and ``rate`` p
    (heads,). Both are clipped to at least 0.01, and p of the power kernel to at most 2.
    """

    undecayed = ("weight", "rate")
    scores = True

    def __init__(self, *, kernel: Literal["log", "power"] = "log", **options: Unpack[RelativeOptions]):
        """Args:
          kernel: "log", the best one according to the authors, or "power".

        Raises:
          ValueError: an unknown kernel.
        """
        if kernel not in ("log", "power"):
            raise ValueError(f'kernel is "log" or "power", got {kernel!r}')
        heads = (options["num_heads"],)
        most = {"log": (2.0, 1.0), "power": (1.0, 2.0)}[kernel]
        self.weight, self.rate = (parameter(uniform(high), heads, options) for high in most)
        self.score = KernelPenalty(kernel)

    def changes(self, queries: jax.Array, keys: jax.Array) -> dict[str, Any]:
        most = None if self.score.kernel == "log" else 2.0
        numbers = (_within(self.weight[...], LEAST, None), _within(self.rate[...], LEAST, most))
        shape = (1, queries.shape[1], self.weight.shape[0])
        return {"score": self.score, "rows": tuple(jnp.broadcast_to(x, shape) for x in numbers)}


def _within(x: jax.Array, least: float, most: float | None) -> jax.Array:
    """Clips ``x`` in float32, with a gradient of 1 outside the bounds too, so that training can bring it back."""
    x = widened(x)
    return x + jax.lax.stop_gradient(jnp.clip(x, least, most) - x)


class InterpolatedDistances(Relative):
    """FIRE: an MLP of log distance over log query position; causal attention only.

    It materializes a bias of shape (batch or 1, heads, queries, keys).

    Parameters: ``scale``, c; ``threshold``, a factor of the option: L is their product; ``hidden`` and ``out``
    (linear).
    """

    undecayed = ("scale", "threshold")
    sees_places = True

    def __init__(
        self, *, width: int = 32, scale: float = 0.1, threshold: float = 512.0, **options: Unpack[RelativeOptions]
    ):
        """Args:
          width: hidden features of the MLP.
          scale, threshold: initial values of c and L. The authors' code has 512 for L.

        Raises:
          ValueError: bidirectional attention.
        """
        if not options["causal"]:
            raise ValueError('relative="fire" divides distances by the position of the query: it needs causal=True')
        made = of_layers(options) | {"dtype": jnp.float32}
        self.scale, self.threshold = parameter(constant(scale), (), options), parameter(ones, (), options)
        self.hidden, self.out = Linear(1, width, **made), Linear(width, options["num_heads"], **made)
        self.first = threshold

    def changes(self, queries: jax.Array, keys: jax.Array) -> dict[str, Any]:
        scale, threshold = jnp.abs(widened(self.scale[...])), jnp.abs(self.first * widened(self.threshold[...]))

        @jax.checkpoint  # else the backward pass would store ``width`` values per pair
        def scores(queries: jax.Array, keys: jax.Array) -> jax.Array:
            distance = jnp.maximum(queries[:, :, None] - keys[:, None], 0).astype(jnp.float32)
            place = jnp.maximum(threshold, queries.astype(jnp.float32))[..., None]
            ratio = jnp.log1p(scale * distance) / (jnp.log1p(scale * place) + 1e-6)
            return jnp.moveaxis(self.out(jax.nn.relu(self.hidden(ratio[..., None]))), -1, 1)

        return {"bias": scores(queries, keys)}


KINDS: dict[str, Callable[..., Relative]] = {
    "alibi": ALiBi,
    "buckets": BucketedDistances,
    "fire": InterpolatedDistances,
    "kerple": Kerple,
    "keys": RelativeKeys,
    "learned": LearnedDistances,
    "universal": UniversalDistances,
}


def create_relative(spec: RelativeSpec, **common: Unpack[RelativeOptions]) -> Relative:
    """Creates one of the modules.

    Args:
      spec: a name in :data:`KINDS`, ``{"name": ..., **options}``, or a callable that takes ``common``.
      **common: options of :class:`RelativeOptions`.

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
