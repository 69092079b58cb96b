"""Linear attention: Transformers are RNNs (Katharopoulos et al., 2020, arXiv:2006.16236), eqs. 5, 9 and 18 to 20.

    y_i = phi(q_i) sum_j phi(k_j) v_j^T / (phi(q_i) . sum_j phi(k_j) + epsilon)

over all j, or over j <= i if causal; the causal form needs only the two sums as its state. With positive random
features of the softmax kernel as phi it is Performer (Choromanski et al., 2021, arXiv:2009.14794).

Exponential features, such as Performer's, are computed from their logarithms a_i of queries and b_j of keys, with the
maximum over the keys that a token sees, per feature, M_i = max_j b_j:

    sum_j phi(q_i) . phi(k_j) ~ sum_j exp(a_i + M_i) . exp(b_j - M_i)

up to a factor per query, which the quotient cancels. The causal form keeps the last M in its state, and multiplies its
sums by exp(M_{i-1} - M_i). So neither long queries nor long keys underflow, and epsilon is relative to the largest
feature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import jax
import jax.numpy as jnp

from layers.attention.projected import RotaryHeadOptions
from layers.attention.summed import Reading, SummedAttention, SumsState
from layers.broadcast import widened
from layers.feature_maps import ExponentialFeatures, FeatureMapSpec, create_feature_map, queries_over_largest
from layers.linear_attention.memory import WeightedState, exponential_weights
from layers.mixer import register_mixer, without_padding
from layers.tokens import Tokens
from pallas_kernels import linear_attention
from pallas_kernels.documents import Documents


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
    wide = widened(v)
    return jnp.concatenate([wide, jnp.ones_like(wide[..., :1])], -1)


def over_weights(sums: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    """The weighted mean, given the weighted sums of :func:`with_ones`; 0 where the weights and ``epsilon`` are 0."""
    total = sums[..., -1:] + epsilon
    return sums[..., :-1] / jnp.where(total == 0, 1, total)


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
        """One sum: phi(k) [v, 1]^T, and the logarithms of the largest features of keys if they are exponential."""
        features = jax.eval_shape(self.feature_map, jax.ShapeDtypeStruct((self.head_dim,), jnp.float32)).shape[-1]
        sums = {"memory": (self.num_heads, features, self.head_dim + 1)}
        return {**sums, "largest": sums["memory"][:2]} if isinstance(self.feature_map, ExponentialFeatures) else sums

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> SumsState:
        state = super().init_state(batch_size, max_length, dtype)
        if "largest" not in state.sums:
            return state
        largest = jnp.full_like(state.sums["largest"], -jnp.inf)
        return dataclasses.replace(state, sums={**state.sums, "largest": largest})

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, reading: Reading) -> jax.Array:
        phi, mask, decay = self.feature_map, reading.heads_mask(), None
        if not isinstance(phi, ExponentialFeatures):
            asks, gives = phi(q), without_padding(phi(k), mask)
        elif not self.causal:
            logs = phi.logs(k)
            largest = jax.lax.stop_gradient(largest_of_document(logs, reading.tokens))
            asks, gives = queries_over_largest(phi.logs(q), largest), jnp.exp(without_padding(logs - largest, mask))
            gives = without_padding(gives, mask)
        else:
            before, segment, last = reading.before, reading.segment, None
            if before is not None and segment is not None:
                last = WeightedState((), before["memory"], segment, before["largest"])
            gives, decay, largest = exponential_weights(phi.logs(k), None, -jnp.inf, reading.tokens, last)
            asks = queries_over_largest(phi.logs(q), largest)
            reading.after["largest"] = largest[:, -1]
        return over_weights(reading.sum("memory", asks, gives, with_ones(v), decay), self.epsilon).astype(v.dtype)


def largest_of_document(x: jax.Array, tokens: Tokens) -> jax.Array:
    """The maximum of ``x`` (batch, length, ...) over the real tokens of each token's document, broadcastable to ``x``;
    -inf where there are none.
    """
    more = tuple(range(2, x.ndim))
    x = x if tokens.mask is None else jnp.where(jnp.expand_dims(tokens.mask, more), x, -jnp.inf)
    if (number := Documents.of(tokens.starts()).number) is None:
        return x.max(1, keepdims=True)
    return jax.vmap(lambda x, number: jax.ops.segment_max(x, number, len(number))[number])(x, number)


@register_mixer("performer")
class PerformerAttention(LinearAttention):
    """Performer: linear attention with positive random features of the softmax kernel, sampled once."""

    own_feature_map = "positive_random"
