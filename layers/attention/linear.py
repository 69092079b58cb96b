"""Linear attention: Transformers are RNNs (Katharopoulos et al., 2020, arXiv:2006.16236), eqs. 5, 9 and 18 to 20.

    y_i = phi(q_i) sum_j phi(k_j) v_j^T / (phi(q_i) . sum_j phi(k_j) + epsilon)

over all j, or over j <= i where causal: then two sums are all that is kept of the past. With positive random features
of the softmax's kernel for phi it is Performer's (Choromanski et al., 2021, arXiv:2009.14794).
"""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import jax
import jax.numpy as jnp
from flax import struct

from layers.attention.projected import ProjectedAttention, RotaryHeadOptions
from layers.feature_maps import FeatureMapSpec, create_feature_map
from layers.mixer import register_mixer, without_padding
from layers.tokens import Continuation, Tokens
from pallas_kernels import linear_attention


def normalized_linear_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, epsilon: float = 1e-6, **options: Any
) -> tuple[jax.Array, jax.Array | None]:
    """:func:`pallas_kernels.linear_attention` over the sum of its weights: the weights of a row's keys sum to 1.

    The sums, of the weights as those of one value more, and the quotient are float32.

    Args:
      q, k: (batch, length, groups, key_dim), features; a key of zeros is not there.
      v: (batch, length, heads, value_dim).
      epsilon: added to the sum of the weights.
      **options: of the op, except its scale, which is 1.

    Returns:
      (batch, length, heads, value_dim) in v's dtype, and where the op is asked for it (``return_state=True``) the state
      (batch, heads, key_dim, value_dim + 1), else None.
    """
    wide = v.astype(jnp.promote_types(v.dtype, jnp.float32))
    values = jnp.concatenate([wide, jnp.ones_like(wide[..., :1])], -1)
    found = linear_attention(q, k, values, scale=1.0, **options)
    out, state = found if options.get("return_state") else (found, None)
    return (out[..., :-1] / (out[..., -1:] + epsilon)).astype(v.dtype), state


@struct.dataclass
class LinearAttentionState:
    """What linear attention keeps of a row's current document.

    Attributes:
      memory: (batch, heads, features of phi, head_dim + 1), at least float32: the sums of phi(k) v^T and of phi(k). Of
        cosine attention (batch, heads, head_dim, head_dim), the sum of k v^T.
      length: (batch,) int32, tokens read of the document.
      segment: (batch,) int32, that document.
    """

    memory: jax.Array
    length: jax.Array
    segment: jax.Array


@register_mixer("linear_attention")
class LinearAttention(ProjectedAttention):
    """Linear attention with any feature map; with random ones of the softmax's kernel, Performer.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``query_norm``, ``key_norm`` where asked for; the
    statistic ``feature_map.projection`` of random features.
    """

    supports_causal = True
    weighs_values = True
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
          feature_map: phi, of :mod:`layers.feature_maps`, whose features must not be negative; None is the class's own.
          epsilon: added to the sum of the weights.
          options: as of :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, or an unknown feature map.
        """
        super().__init__(features, **options)
        self.feature_map = create_feature_map(feature_map or self.own_feature_map, self.head_dim, rngs=options["rngs"])
        self.causal, self.epsilon = causal, epsilon

    @property
    def complexity(self) -> float:
        return 1.0

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"mask", "segment_ids"} | (set() if self.rotary is None else {"positions"}))

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        return self._attend(q, k, v, tokens, None, causal=self.causal, starts=tokens.starts())[0]

    def _attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, tokens: Tokens, after: Continuation | None, **options: Any
    ) -> tuple[jax.Array, jax.Array | None]:
        """What heads find, and the memory where the op's ``options`` ask for it; ``after`` where tokens follow others."""
        q, k = self.feature_map(q), self.feature_map(k)
        heads = None if tokens.mask is None else tokens.mask[..., None]
        return normalized_linear_attention(q, without_padding(k, heads), v, epsilon=self.epsilon, **options)

    def init_state(
        self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32
    ) -> LinearAttentionState:
        """An empty state; its size does not depend on the length, and it is never narrower than float32."""
        if not self.causal:
            return super().init_state(batch_size, max_length, dtype)
        memory = (batch_size, self.num_heads, *self._memory_shape())
        length, segment = (jnp.zeros((batch_size,), jnp.int32) for _ in range(2))
        return LinearAttentionState(jnp.zeros(memory, jnp.promote_types(dtype, jnp.float32)), length, segment)

    def _memory_shape(self) -> tuple[int, int]:
        """Of a head: keys and values."""
        features = jax.eval_shape(self.feature_map, jax.ShapeDtypeStruct((self.head_dim,), jnp.float32)).shape[-1]
        return features, self.head_dim + 1

    def core_next(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        x: jax.Array,
        tokens: Tokens,
        state: LinearAttentionState,
        after: Continuation,
    ) -> tuple[jax.Array, LinearAttentionState]:
        starts = tokens.starts(state.segment)
        y, memory = self._attend(q, k, v, tokens, after, initial_state=state.memory, starts=starts, return_state=True)
        assert memory is not None
        return y, LinearAttentionState(memory.astype(state.memory.dtype), after.length, after.segment)


@register_mixer("performer")
class PerformerAttention(LinearAttention):
    """Linear attention with positive random features of the softmax's kernel, drawn once: Performer's."""

    own_feature_map = "positive_random"
