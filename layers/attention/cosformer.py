"""cosFormer: Rethinking Softmax in Attention (Qin et al., ICLR 2022, arXiv:2202.08791), eqs. 8 to 12.

    w_ij = relu(q_i) . relu(k_j) cos(pi (i - j) / 2M)            y_i = sum_j w_ij v_j / max(sum_j w_ij, 1e-6)

Because cos(a - b) = cos a cos b + sin a sin b, this is linear attention with twice as many features, which favors
nearby tokens. M is at least the length, so that no weight is negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from layers.attention.projected import HeadOptions
from layers.attention.summed import Reading, SummedAttention
from layers.feature_maps import FeatureMapSpec, create_feature_map
from layers.mixer import register_mixer, without_padding
from layers.tokens import Tokens

EPSILON = 1e-6


@register_mixer("cosformer")
class CosFormerAttention(SummedAttention):
    """Linear attention with ReLU features, reweighted by the cosine of the distance.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear).
    """

    def __init__(
        self,
        features: int,
        *,
        causal: bool = False,
        max_length: int | None = 4096,
        feature_map: FeatureMapSpec = "relu",
        head_dim: int | None = None,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          max_length: M, the maximum length of a document; longer rows are refused. None uses each document's own
            length, as in the authors' code; not in the causal form, which is read piece by piece and does not know it.
          feature_map: one of :mod:`layers.feature_maps` with non-negative features.
          head_dim, options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, causal=True without max_length, or an unknown feature map.
        """
        if causal and max_length is None:
            raise ValueError("a token of causal cosFormer does not know its document's length: give max_length")
        super().__init__(features, causal=causal, head_dim=head_dim, **options)
        self.feature_map = create_feature_map(feature_map, self.head_dim, rngs=options["rngs"])
        self.max_length = max_length

    def sum_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """One sum: sine and cosine features times the values and a column of ones, which sums the weights."""
        features = jax.eval_shape(self.feature_map, jax.ShapeDtypeStruct((self.head_dim,), jnp.float32)).shape[-1]
        return {"memory": (self.num_heads, 2 * features, self.head_dim + 1)}

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        """As :meth:`ProjectedAttention.core`.

        Raises:
          ValueError: a row without ``segment_ids`` is longer than ``max_length``.
        """
        self._check(None if tokens.segment_ids is not None else x.shape[1])
        return super().core(q, k, v, x, tokens)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> Any:
        """As in :class:`SummedAttention`.

        Raises:
          ValueError: ``max_length`` is more than the mixer's.
        """
        self._check(max_length)
        return super().init_state(batch_size, max_length, dtype)

    def _check(self, length: int | None) -> None:
        if length is not None and self.max_length is not None and length > self.max_length:
            raise ValueError(
                f"beyond max_length={self.max_length} weights would be negative, and there are {length} tokens: make "
                "the mixer with a larger max_length"
            )

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, reading: Reading) -> jax.Array:
        wide = jnp.promote_types(v.dtype, jnp.float32)
        most = reading.count() if self.max_length is None else self.max_length
        angle = (jnp.pi / 2 * (reading.places().astype(wide) / most))[..., None, None]

        def turned(a: jax.Array) -> jax.Array:
            a = self.feature_map(a).astype(wide)
            return jnp.concatenate([a * jnp.sin(angle), a * jnp.cos(angle)], -1)

        values = jnp.concatenate([v.astype(wide), jnp.ones((*v.shape[:-1], 1), wide)], -1)
        sums = reading.sum("memory", turned(q), without_padding(turned(k), reading.heads_mask()), values)
        return (sums[..., :-1] / jnp.maximum(sums[..., -1:], EPSILON)).astype(v.dtype)
