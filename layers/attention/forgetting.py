"""Forgetting attention: Forgetting Transformer, Softmax Attention with a Forget Gate (Lin et al., ICLR 2025,
arXiv:2503.02130).

    y_i = sum_j softmax_j(q_i . k_j / sqrt(d) + sum_{l = j+1..i} log f_l) v_j        f_l = sigmoid(W_f x_l + b_f)

with a gate f for each head. The sum is the difference of two cumulative sums: one at the query, which does not change
its softmax, and one at the key, which is added to the key's logits.

The sums are float32, so a weight has the rounding error of the sum over the whole row: with gates around 1/2 outputs of
8,192 tokens are accurate to 2.5e-4, and the error grows in proportion to the length. A state counts its sums back from
its last token, where near keys keep all digits.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import struct

from layers.attention.cache import AttentionCache, ContextCache
from layers.attention.multi_head import MultiHeadAttention
from layers.attention.projected import GroupedHeadOptions
from layers.linear import Linear
from layers.mixer import register_mixer, without_padding
from layers.module import of_layers
from layers.tokens import Continuation, Tokens


@struct.dataclass
class FadingCache(AttentionCache):
    """Keys and values, with their accumulated log decay.

    Attributes:
      fade: (batch, capacity, heads) float32, for each token the sum of log f over the tokens read after it.
    """

    fade: jax.Array


@register_mixer("forgetting_attention")
class ForgettingAttention(MultiHeadAttention):
    """Causal softmax attention with forget gates: the weight of a key decays by the gates of the tokens after it.

    Parameters: ``query``, ``key``, ``value``, ``out``, ``forget`` (linear), and ``query_norm``, ``key_norm`` and
    ``gate`` (linear) if enabled.
    """

    supports_bidirectional = False

    def __init__(
        self, features: int, *, window: int | None = None, gated: bool = False, **options: Unpack[GroupedHeadOptions]
    ):
        """Args:
        window, options: as in :class:`MultiHeadAttention`, without biases by default; the paper uses no rotary
          embedding.
        gated: multiply the head outputs by a sigmoid gate computed from the token.
        """
        options.setdefault("use_bias", False)
        super().__init__(features, causal=True, window=window, **options)
        common = of_layers(options)
        self.forget = Linear(features, self.num_heads, **common)
        self.gate = Linear(features, self.num_heads * self.head_dim, use_bias=False, **common) if gated else None

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        # Summed from the first token, so that later tokens do not change a single bit of the result.
        ids, fade = (tokens.segment_ids,) * 2, -jnp.cumsum(self._rates(x, tokens), axis=1)
        places = (tokens.ordered_positions,) * 2
        return self.attend(q, k, v, x, mask=tokens.mask, positions=places, segments=ids, added=fade)

    def init_state(
        self,
        batch_size: int,
        max_length: int | None = None,
        dtype: Any = jnp.float32,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
    ) -> AttentionCache | ContextCache:
        cache = super().init_state(batch_size, max_length, dtype, context, context_mask)
        assert isinstance(cache, AttentionCache)  # it reads no context
        fade = jnp.zeros((*cache.positions.shape, self.num_heads), jnp.float32)
        return FadingCache(**{field.name: getattr(cache, field.name) for field in dataclasses.fields(cache)}, fade=fade)

    def core_next(
        self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens, state: Any, after: Continuation
    ) -> tuple[jax.Array, Any]:
        # Summed back from the last token, so that the values of nearby tokens stay small in a long text.
        rates = self._rates(x, tokens)
        total = jnp.cumsum(rates[:, ::-1], axis=1)[:, ::-1]
        state = state.replace(fade=jnp.where(state.positions[..., None] >= 0, state.fade + total[:, :1], 0))
        new = {"key": k, "value": v, "fade": total - rates}
        written, seen, segments = self.read(new, tokens, state, after)
        places = tokens.positions_or(after.positions), seen.positions
        y = self.attend(q, seen.key, seen.value, x, positions=places, segments=segments, added=seen.fade)
        return y, written

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, **known: Any) -> jax.Array:
        y = super().attend(q, k, v, x, **known)
        return y if self.gate is None else y * jax.nn.sigmoid(self.gate(x)).reshape(y.shape)

    def _rates(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        """log f of each token, float32 (batch, length, heads)."""
        return without_padding(jax.nn.log_sigmoid(self.forget(x).astype(jnp.float32)), tokens.mask)
