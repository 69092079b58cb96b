"""Kernelized attention with relative positions: Stable, Fast and Accurate: Kernelized Attention with Relative
Positional Encoding (Luo et al., NeurIPS 2021, arXiv:2106.12566), section 3.

    y_i = phi(q_i) . sum_j e^b(j-i) phi(k_j) v_j^T / (phi(q_i) . sum_j e^b(j-i) phi(k_j))

over all j, or over j <= i where causal, with a learned b of each head and offset. Each entry of phi(k_j) [v_j, 1]^T is
multiplied with a Toeplitz matrix along the sequence, by Fourier transforms, so that no weight is computed. phi are
positive random features of the softmax's kernel, of queries and keys of norm 1: without the norm they vary too much for
a model to be trained from scratch, which is the paper's second point. Beyond the table's ends b is constant.

The transforms' rounding errors are relative to the largest sum of a row: a token whose weights sum to a thousandth of
that, as the first ones may where b differs much, is a thousand times less exact.
"""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import struct

from layers.attention.cache import TokenCache
from layers.attention.linear import over_weights, with_ones
from layers.attention.projected import HeadOptions, ProjectedAttention
from layers.broadcast import widened
from layers.feature_maps import FeatureMapSpec, create_feature_map
from layers.initializers import zeros
from layers.mixer import register_mixer, without_padding
from layers.module import parameter
from layers.norm import create_norm
from layers.tokens import Continuation, Tokens
from pallas_kernels import attention, toeplitz_product


@struct.dataclass
class FeatureCache(TokenCache):
    """What is kept of the tokens read so far of each row's current document.

    Attributes:
      key: (batch, capacity, heads, features of phi), phi(k), at least float32.
      value: (batch, capacity, heads, head_dim).
    """

    key: jax.Array
    value: jax.Array


@register_mixer("kernelized_attention")
class KernelizedAttention(ProjectedAttention):
    """Linear attention whose weights also depend on the distance, by a learned factor of each offset.

    It takes n log n operations for n tokens, and memory linear in n. Documents of a row, and tokens read after others,
    are computed weight by weight instead: an arbitrary b leaves no state of fixed size. The Fourier transforms' errors
    are relative to the largest e^b of a head.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), and ``bias``, b (heads, offsets), of the offsets j - i
    in rising order; the statistic ``feature_map.projection`` of random features.
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
          feature_map: phi, of :mod:`layers.feature_maps`, whose features must not be negative.
          length: the norm that queries and keys are given before the softmax's kernel exp(q . k); None: they are left
            as they are, and the kernel is that of q . k / sqrt(head_dim).
          reach: offsets with a parameter of their own, to each side.
          epsilon: added to the sum of the weights.
          head_dim, options: as of :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, a reach below 1, or an unknown feature map.
        """
        if reach < 1:
            raise ValueError(f"kernelized_attention: reach must be at least 1, got {reach}")
        super().__init__(features, head_dim=head_dim, **options)
        self.feature_map = create_feature_map(feature_map, self.head_dim, rngs=options["rngs"])
        self.bias = parameter(zeros, (self.num_heads, reach if causal else 2 * reach - 1), options)
        self.unit = None if length is None else create_norm("unit", self.head_dim, rngs=options["rngs"])
        # Random features divide by the root of it, as the softmax does.
        self.length = None if length is None else length * self.head_dim**0.25
        self.causal, self.reach, self.epsilon = causal, reach, epsilon

    @property
    def complexity(self) -> float:
        return 1.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        heads = None if tokens.mask is None else tokens.mask[..., None]
        asks, gives, values = self.phi(q), without_padding(self.phi(k), heads), with_ones(v)
        if tokens.segment_ids is not None:
            ids = tokens.segment_ids
            sums = self._direct(asks, gives, values, query_segments=ids, key_segments=ids)
        else:
            sums = self._by_transforms(asks, gives, values)
        return over_weights(sums, self.epsilon).astype(v.dtype)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> FeatureCache:
        """A cache of ``max_length`` tokens.

        Raises:
          ValueError: it is bidirectional, or no capacity is given.
        """
        if not self.causal:
            return super().init_state(batch_size, max_length, dtype)
        if max_length is None:
            raise ValueError("a cache of kernelized attention needs max_length: how many tokens it must hold")
        shape, wide = (batch_size, max_length, self.num_heads), jnp.promote_types(dtype, jnp.float32)
        features = jax.eval_shape(self.phi, jax.ShapeDtypeStruct((1, self.head_dim), jnp.float32)).shape[-1]
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
        written, seen, (of_queries, of_keys) = state.read({"key": self.phi(k), "value": v}, tokens, after)
        places = {"query_positions": after.positions, "key_positions": seen.positions}
        segments = {"query_segments": of_queries, "key_segments": of_keys}
        sums = self._direct(self.phi(q), seen.key, with_ones(seen.value), **places, **segments)
        return over_weights(sums, self.epsilon).astype(v.dtype), written

    def phi(self, heads: jax.Array) -> jax.Array:
        """phi of (..., head_dim), at least float32."""
        heads = heads.astype(jnp.promote_types(heads.dtype, jnp.float32))
        return self.feature_map(heads if self.unit is None else self.unit(heads) * self.length)

    def _factors(self) -> jax.Array:
        """e^b over the largest of its head: float32 (heads, offsets)."""
        bias = widened(self.bias[...])
        return jnp.exp(bias - jax.lax.stop_gradient(bias.max(-1, keepdims=True)))

    def _direct(self, asks: jax.Array, gives: jax.Array, values: jax.Array, **where: Any) -> jax.Array:
        """The sums by the weights themselves, which take time quadratic in the length."""
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
            """One feature of phi at a time: together they would be as large as a state for each token."""
            ask, give = feature
            products = (give[..., None] * values).reshape(batch, length, heads * width)
            found = toeplitz_product(products, kernel, causal=self.causal)
            return sums + ask[..., None] * found.reshape(values.shape), None

        by_feature = tuple(jnp.moveaxis(a, -1, 0) for a in (asks, gives))
        return jax.lax.scan(more, jnp.zeros_like(values), by_feature)[0]
