"""Kernelized attention with relative positions: Stable, Fast and Accurate: Kernelized Attention with Relative
Positional Encoding (Luo et al., NeurIPS 2021, arXiv:2106.12566), section 3.

    y_i = phi(q_i) . sum_j e^b(j-i) phi(k_j) v_j^T / (phi(q_i) . sum_j e^b(j-i) phi(k_j))

over all j, or over j <= i if causal, with a learned b per head and offset. Each entry of phi(k_j) [v_j, 1]^T is
multiplied by a Toeplitz matrix along the sequence, using Fourier transforms, so the weights are never computed. phi are
positive random features of the softmax kernel, applied to unit-norm queries and keys: without the normalization their
variance is too large to train from scratch, which is the paper's second point. Beyond the ends of its table b is
constant.

Exponential features of long queries and keys underflow. As in :mod:`layers.attention.linear` they are divided by the
largest values among the keys, per feature, and by the largest value of each query, which changes no weight. Because of
the transforms these are the largest of the row, or of all that a call of ``extend`` sees; epsilon is relative to those
that the token itself sees.

The rounding errors of the transforms are relative to the largest sum of a row: a token whose weights sum to a
thousandth of that, as may happen to the first tokens if b varies strongly, is a thousand times less accurate.
"""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import struct

from layers.attention.cache import TokenCache
from layers.attention.linear import largest_of_document, over_weights, with_ones
from layers.attention.projected import HeadOptions, ProjectedAttention
from layers.broadcast import widened
from layers.feature_maps import ExponentialFeatures, FeatureMapSpec, create_feature_map, queries_over_largest
from layers.initializers import zeros
from layers.linear_attention.memory import WeightedState, exponential_weights
from layers.mixer import register_mixer
from layers.module import parameter
from layers.norm import create_norm
from layers.tokens import Continuation, Tokens
from pallas_kernels import attention, toeplitz_product


@struct.dataclass
class FeatureCache(TokenCache):
    """Features of the keys, and the values, of the tokens read so far in each row's current document.

    Attributes:
      key: (batch, capacity, heads, features of phi), phi(k), or its logarithm if phi is exponential, at least float32.
      value: (batch, capacity, heads, head_dim).
    """

    key: jax.Array
    value: jax.Array


@register_mixer("kernelized_attention")
class KernelizedAttention(ProjectedAttention):
    """Linear attention with a learned factor per relative position.

    It takes n log n operations for n tokens, and memory linear in n. Rows with several documents, and ``extend``,
    compute the weights themselves instead, in quadratic time: an arbitrary b admits no state of fixed size. The errors
    of the Fourier transforms are relative to the largest e^b of a head.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), and ``bias``, b (heads, offsets), in ascending order of
    the offset j - i; the statistic ``feature_map.projection`` of random features.
    """

    supports_causal = True
    weighs_values = True
    honors = frozenset({"mask", "segment_ids"})
    paper = (18,)
    undecayed = ("bias",)

    def __init__(
        self,
        features: int,
        *,
        causal: bool = False,
        head_dim: int | None = None,
        feature_map: FeatureMapSpec = "positive_random",
        length: float | None = 1.0,
        reach: int = 128,
        epsilon: float = 1e-6,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          feature_map: phi, one of :mod:`layers.feature_maps` with non-negative features.
          length: the norm to which queries and keys are scaled before the softmax kernel exp(q . k); None leaves them
            unchanged, with the kernel exp(q . k / sqrt(head_dim)).
          reach: number of offsets on each side, 0 included, with their own parameter.
          epsilon: added to the sum of the weights, of exponential features relative to the largest that a token sees.
          head_dim, options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, a reach below 1, or an unknown feature map.
        """
        if reach < 1:
            raise ValueError(f"kernelized_attention: reach must be at least 1, got {reach}")
        super().__init__(features, head_dim=head_dim, **options)
        self.feature_map = create_feature_map(feature_map, self.head_dim, rngs=options["rngs"])
        self.bias = parameter(zeros, (self.num_heads, reach if causal else 2 * reach - 1), options)
        self.exponential = isinstance(self.feature_map, ExponentialFeatures)
        self.unit = None if length is None else create_norm("unit", self.head_dim, rngs=options["rngs"])
        # Undoes the random features' own division of queries and keys by head_dim**0.25.
        self.length = None if length is None else length * self.head_dim**0.25
        self.causal, self.reach, self.epsilon = causal, reach, epsilon

    @property
    def complexity(self) -> float:
        return 1.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        real = jnp.ones(k.shape[:2], bool) if tokens.mask is None else tokens.mask
        found, values = self._kept(k), with_ones(v)
        asks, gives, epsilon = self._features(q, found, real, self._seen(found, tokens, None))
        if tokens.segment_ids is not None:
            ids = tokens.segment_ids
            sums = self._direct(asks, gives, values, query_segments=ids, key_segments=ids)
        else:
            sums = self._by_transforms(asks, gives, values)
        return over_weights(sums, epsilon).astype(v.dtype)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> FeatureCache:
        """A cache of ``max_length`` tokens.

        Raises:
          ValueError: the mixer is bidirectional, or no capacity is given.
        """
        if not self.causal:
            return super().init_state(batch_size, max_length, dtype)
        if max_length is None:
            raise ValueError("a cache of kernelized attention needs max_length: how many tokens it must hold")
        shape, wide = (batch_size, max_length, self.num_heads), jnp.promote_types(dtype, jnp.float32)
        features = jax.eval_shape(self._kept, jax.ShapeDtypeStruct((1, self.head_dim), jnp.float32)).shape[-1]
        key, value = jnp.zeros((*shape, features), wide), jnp.zeros((*shape, self.head_dim), dtype)
        return FeatureCache(**FeatureCache.nothing(*shape[:2]), key=key, value=value)

    def core_next(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        x: jax.Array,
        tokens: Tokens,
        state: FeatureCache,
        after: Continuation,
    ) -> tuple[jax.Array, FeatureCache]:
        found, filled = self._kept(k), (state.positions >= 0)[..., None, None]
        before = WeightedState((), state.key, state.segment, jnp.where(filled, state.key, -jnp.inf).max(1))
        largest = self._seen(found, tokens, before)
        written, seen, (of_queries, of_keys) = state.read({"key": found, "value": v}, tokens, after)
        asks, gives, epsilon = self._features(q, seen.key, seen.positions >= 0, largest)
        places = {"query_positions": after.positions, "key_positions": seen.positions}
        segments = {"query_segments": of_queries, "key_segments": of_keys}
        sums = self._direct(asks, gives, with_ones(seen.value), **places, **segments)
        return over_weights(sums, epsilon).astype(v.dtype), written

    def _kept(self, heads: jax.Array) -> jax.Array:
        """phi of (..., head_dim), or its logarithm if it is exponential, at least float32."""
        heads = widened(heads)
        heads = heads if self.unit is None else self.unit(heads) * self.length
        phi = self.feature_map
        return phi.logs(heads) if isinstance(phi, ExponentialFeatures) else phi(heads)

    def _seen(self, logs: jax.Array, tokens: Tokens, before: WeightedState | None) -> jax.Array:
        """The largest logarithms among the keys that a token sees, broadcastable to ``logs`` (batch, length, heads,
        features), without a gradient, if features are exponential.
        """
        logs = jax.lax.stop_gradient(logs)
        if not self.exponential:
            return logs
        return (
            exponential_weights(logs, None, -jnp.inf, tokens, before)[2]
            if self.causal
            else largest_of_document(logs, tokens)
        )

    def _features(
        self, q: jax.Array, kept: jax.Array, real: jax.Array, seen: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array | float]:
        """phi of queries and keys, up to factors that change no weight, and what is added to the sum of the weights.

        Args:
          q: (batch, new, heads, head_dim).
          kept: :meth:`_kept` of the keys, (batch, length, heads, features).
          real: bool (batch, length), False where there is no key: its features are 0.
          seen: :meth:`_seen` of the queries' tokens.
        """
        asks, real = self._kept(q), real[..., None, None]
        if not self.exponential:
            return asks, jnp.where(real, kept, 0), self.epsilon
        largest = jax.lax.stop_gradient(jnp.where(real, kept, -jnp.inf).max(1, keepdims=True))
        own, all_of_it = (jax.lax.stop_gradient(asks + a).max(-1, keepdims=True) for a in (seen, largest))
        gives = jnp.where(real, jnp.exp(jnp.where(real, kept - largest, 0)), 0)
        share = jnp.exp(own - jnp.where(jnp.isneginf(all_of_it), 0, all_of_it))
        return queries_over_largest(asks, largest), gives, self.epsilon * share

    def _factors(self) -> jax.Array:
        """e^b divided by its maximum per head: float32 (heads, offsets)."""
        bias = widened(self.bias[...])
        return jnp.exp(bias - jax.lax.stop_gradient(bias.max(-1, keepdims=True)))

    def _direct(self, asks: jax.Array, gives: jax.Array, values: jax.Array, **where: Any) -> jax.Array:
        """The sums computed from the weights themselves, in time quadratic in the length."""
        return attention(
            asks, gives, values.astype(asks.dtype), normalize="none", scale=1.0, causal=self.causal,
            relative_weight=self._factors(), relative_origin=1 - self.reach, **where,
        )  # fmt: skip

    def _by_transforms(self, asks: jax.Array, gives: jax.Array, values: jax.Array) -> jax.Array:
        batch, length, heads, width = values.shape
        offsets = jnp.arange(0 if self.causal else 1 - length, length)  # i - j
        kernel = self._factors()[:, jnp.clip(self.reach - 1 - offsets, 0, self.bias.shape[1] - 1)].T

        @jax.checkpoint
        def more(sums: jax.Array, feature: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            """One feature of phi at a time: all of them together would be as large as one state per token."""
            ask, give = feature
            products = (give[..., None] * values).reshape(batch, length, heads * width)
            found = toeplitz_product(products, kernel, causal=self.causal)
            return sums + ask[..., None] * found.reshape(values.shape), None

        by_feature = tuple(jnp.moveaxis(a, -1, 0) for a in (asks, gives))
        return jax.lax.scan(more, jnp.zeros_like(values), by_feature)[0]
