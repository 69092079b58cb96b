"""Forgetting attention: Forgetting Transformer, Softmax Attention with a Forget Gate (Lin et al., ICLR 2025,
arXiv:2503.02130).

    y_i = sum_j softmax_j(q_i . k_j / sqrt(d) + sum_{l = j+1..i} log f_l) v_j        f_l = sigmoid(W_f x_l + b_f)

with a gate f for each head. The sum is the difference of two cumulative sums: one at the query, which does not change
its softmax, and one at the key, which is added to the key's logits.

The sums are pairs of float32 numbers (:mod:`primitives.sums`), and the op subtracts that at the query before it rounds
them, so that a weight has the rounding error of the sum between key and query, not of that over the whole row. In 16
bits, kernels round the sums to float32. A state counts its sums back from its last token.
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
from layers.broadcast import widened
from layers.linear import Linear
from layers.mixer import register_mixer, without_padding
from layers.module import of_layers
from layers.tokens import Continuation, Tokens
from primitives.sums import Pair, add, running


@struct.dataclass
class FadingCache(AttentionCache):
    """Keys and values, with their accumulated log decay.

    Attributes:
      fade, fade_rest: (batch, capacity, heads), at least float32, for each token the sum of log f over the tokens read
        after it, as a pair (:mod:`primitives.sums`).
    """

    fade: jax.Array
    fade_rest: jax.Array


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
        fade, rest = running(self._rates(x, tokens), 1)
        ids, places = (tokens.segment_ids,) * 2, (tokens.ordered_positions,) * 2
        return self.faded(q, k, v, x, (-fade, -rest), mask=tokens.mask, positions=places, segments=ids)

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
        shape, wide = (*cache.positions.shape, self.num_heads), jnp.promote_types(dtype, jnp.float32)
        fade = {"fade": jnp.zeros(shape, wide), "fade_rest": jnp.zeros(shape, wide)}
        return FadingCache(**{field.name: getattr(cache, field.name) for field in dataclasses.fields(cache)}, **fade)

    def core_next(
        self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens, state: Any, after: Continuation
    ) -> tuple[jax.Array, Any]:
        # Summed back from the last token, so that the values of nearby tokens stay small in a long text.
        rates = self._rates(x, tokens)
        following = jnp.concatenate([rates[:, 1:], jnp.zeros_like(rates[:, :1])], 1)
        (fade, rest), filled = running(following, 1, reverse=True), state.positions[..., None] >= 0
        total = add((fade[:, :1], rest[:, :1]), (rates[:, :1], jnp.zeros_like(rates[:, :1])))
        older = [jnp.where(filled, part, 0) for part in add((state.fade, state.fade_rest), total)]
        state = state.replace(fade=older[0].astype(state.fade.dtype), fade_rest=older[1].astype(state.fade.dtype))
        new = {"key": k, "value": v, "fade": fade, "fade_rest": rest}
        written, seen, segments = self.read(new, tokens, state, after)
        places = tokens.positions_or(after.positions), seen.positions
        y = self.faded(q, seen.key, seen.value, x, (seen.fade, seen.fade_rest), positions=places, segments=segments)
        return y, written

    def faded(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, fade: Pair, **known: Any) -> jax.Array:
        """The outputs of :meth:`attend`, with sums ``fade`` added to the logits, a pair of (batch, keys, heads)."""
        rest = jnp.swapaxes(fade[1], 1, 2)[:, :, None]
        return self.attend(q, k, v, x, **known, added=fade[0], bias_rest=rest)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, **known: Any) -> jax.Array:
        y = super().attend(q, k, v, x, **known)
        return y if self.gate is None else y * jax.nn.sigmoid(self.gate(x)).reshape(y.shape)

    def _rates(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        """log f of each token, at least float32 (batch, length, heads)."""
        return without_padding(jax.nn.log_sigmoid(widened(self.forget(x))), tokens.mask)
