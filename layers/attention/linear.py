"""Linear attention: Transformers are RNNs (Katharopoulos et al., 2020, arXiv:2006.16236), eqs. 5, 9 and 18 to 20.

    y_i = phi(q_i) sum_j phi(k_j) v_j^T / (phi(q_i) . sum_j phi(k_j) + epsilon)

over all j, or over j <= i if causal; the causal form needs only the two sums as its state. With positive random
features of the softmax kernel as phi it is Performer (Choromanski et al., 2021, arXiv:2009.14794).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Unpack

import jax
import jax.numpy as jnp

from layers.attention.projected import RotaryHeadOptions
from layers.attention.summed import Reading, SummedAttention
from layers.feature_maps import FeatureMapSpec, create_feature_map
from layers.mixer import register_mixer, without_padding
from pallas_kernels import linear_attention


def normalized_linear_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, epsilon: float = 1e-6, causal: bool = True
) -> jax.Array:
    """:func:`pallas_kernels.linear_attention` divided by the sum of its weights, so that the weights of a query sum to
    1.

    The sums (that of the weights is computed as an extra value of 1) and the quotient are float32.

    Args:
      q, k: (batch, length, groups, key_dim), after the feature map; a key of zeros has no weight.
      v: (batch, length, heads, value_dim).
      epsilon: added to the sum of the weights.
      causal: each token sees only those up to itself.

    Returns:
      (batch, length, heads, value_dim) in v's dtype.
    """
    return over_weights(linear_attention(q, k, with_ones(v), scale=1.0, causal=causal), epsilon).astype(v.dtype)


def with_ones(v: jax.Array) -> jax.Array:
    """``v``, at least float32, with a feature of ones appended, whose weighted sum is the sum of the weights."""
    wide = v.astype(jnp.promote_types(v.dtype, jnp.float32))
    return jnp.concatenate([wide, jnp.ones_like(wide[..., :1])], -1)


def over_weights(sums: jax.Array, epsilon: float) -> jax.Array:
    """The weighted mean, given the weighted sums of :func:`with_ones`."""
    return sums[..., :-1] / (sums[..., -1:] + epsilon)


@register_mixer("linear_attention")
class LinearAttention(SummedAttention):
    """Linear attention with any feature map; with random features of the softmax kernel it is Performer.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``query_norm``, ``key_norm`` if enabled; the statistic
    ``feature_map.projection`` of random features.
    """

    own_feature_map: ClassVar[str] = "elu+1"

    def __init__(
        self,
        features: int,
        *,
        causal: bool = False,
        feature_map: FeatureMapSpec | None = None,
        epsilon: float = 1e-6,
        **options: Unpack[RotaryHeadOptions],
    ):
        """Args:
          feature_map: phi, one of :mod:`layers.feature_maps` with non-negative features; None for the class's default,
            ``own_feature_map``.
          epsilon: added to the sum of the weights.
          options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, or an unknown feature map.
        """
        super().__init__(features, causal=causal, **options)
        self.feature_map = create_feature_map(feature_map or self.own_feature_map, self.head_dim, rngs=options["rngs"])
        self.epsilon = epsilon

    def sum_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """One sum: phi(k) [v, 1]^T."""
        features = jax.eval_shape(self.feature_map, jax.ShapeDtypeStruct((self.head_dim,), jnp.float32)).shape[-1]
        return {"memory": (self.num_heads, features, self.head_dim + 1)}

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, reading: Reading) -> jax.Array:
        q, k = self.feature_map(q), without_padding(self.feature_map(k), reading.heads_mask())
        return over_weights(reading.sum("memory", q, k, with_ones(v)), self.epsilon).astype(v.dtype)


@register_mixer("performer")
class PerformerAttention(LinearAttention):
    """Performer: linear attention with positive random features of the softmax kernel, sampled once."""

    own_feature_map = "positive_random"
