"""Relative convolutional attention: RCMHA, Relative Convolutional Multi-Head Attention (Sugiharto et al., 2023).

    y_i = sum_{j <= i} softmax_j(((q_i + u) . k_j + q_i . e_{i-j} + w_{i-j}) / sqrt(d)) v_j
    q, k, v = conv(W_q x), conv(W_k x), conv(W_v x)

conv is a causal depth-wise convolution over three tokens, with one filter shared by all heads (Primer, So et al., 2021,
arXiv:2109.08668); the logits are those of Transformer-XL (Dai et al., 2019, arXiv:1901.02860) with learned vectors e
instead of sinusoids. The cache takes the place of the authors' memory of earlier segments.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import struct

from layers.attention.cache import AttentionCache
from layers.attention.multi_head import MultiHeadAttention
from layers.attention.projected import HeadOptions, of_projections
from layers.broadcast import broadcast
from layers.convolution import CausalConvolution, ConvolutionState
from layers.initializers import zeros
from layers.linear import Linear
from layers.mixer import register_mixer
from layers.module import Diagnostic, of_layers, parameter
from layers.tokens import Continuation, Tokens
from pallas_kernels import attention, attention_weights

PARTS = ("query", "key", "value")


class HeadConvolution(CausalConvolution):
    """A causal convolution of heads (batch, length, heads, head_dim) whose filter (head_dim) is shared by all heads."""

    def __init__(self, head_dim: int, num_heads: int, kernel_size: int, **options: Any):
        """Args: as in :class:`CausalConvolution`."""
        super().__init__(head_dim, kernel_size, **options)
        self.num_heads, self.features = num_heads, num_heads * head_dim

    def of_heads(
        self, heads: jax.Array, tokens: Tokens, state: ConvolutionState | None = None
    ) -> tuple[jax.Array, ConvolutionState | None]:
        """The convolved heads, and the new state if ``state`` is given."""
        y, state = self.recur(heads.reshape(*heads.shape[:2], self.features), tokens, state)
        return y.reshape(heads.shape), state

    def _cast(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        x, kernel, bias = super()._cast(x)
        return x, jnp.tile(kernel, (1, 1, self.num_heads)), None if bias is None else jnp.tile(bias, self.num_heads)


@struct.dataclass
class ConvolvedCache(AttentionCache):
    """Keys and values, and the convolution states of queries, keys and values by name."""

    convolutions: dict[str, ConvolutionState]


@register_mixer("relative_convolutional_attention")
class RelativeConvolutionalAttention(MultiHeadAttention):
    """Causal softmax attention with convolved queries, keys and values, and learned relative position keys.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear); ``query_convolution``, ``key_convolution``,
    ``value_convolution``; ``content`` u (heads, head_dim); ``distance_key`` e (heads, reach + 1, head_dim) and
    ``distance_bias`` w (heads, reach + 1), from the most distant to the token itself.
    """

    supports_bidirectional = False
    paper = (32,)
    undecayed = ("content", "distance_key", "distance_bias")

    def __init__(
        self,
        features: int,
        *,
        head_dim: int | None = None,
        reach: int = 512,
        kernel_size: int = 3,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          reach: greatest distance with its own key; greater ones are clipped to it. The authors use 4096.
          kernel_size: kernel size of the convolutions in tokens.
          head_dim, options: as in :class:`MultiHeadAttention`, without biases of queries and keys.

        Raises:
          ValueError: features not divisible by num_heads, or a reach below 1.
        """
        if reach < 1:
            raise ValueError(f"reach is the greatest distance with its own entry, at least 1; got {reach}")
        options["key_bias"] = False
        super().__init__(features, causal=True, head_dim=head_dim, **options)
        heads, width = self.num_heads, self.head_dim
        self.query = Linear(features, heads * width, use_bias=False, **of_projections(options))
        for part in PARTS:
            setattr(self, f"{part}_convolution", HeadConvolution(width, heads, kernel_size, **of_layers(options)))
        self.content = parameter(zeros, (heads, width), options)
        self.distance_key = parameter(zeros, (heads, reach + 1, width), options)
        self.distance_bias = parameter(zeros, (heads, reach + 1), options)
        self.reach = reach

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        q, k, v = (
            self._convolution(part).of_heads(heads, tokens)[0] for part, heads in zip(PARTS, (q, k, v), strict=True)
        )
        return super().core(q, k, v, x, tokens)

    def init_state(
        self,
        batch_size: int,
        max_length: int | None = None,
        dtype: Any = jnp.float32,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
    ) -> Any:
        cache = super().init_state(batch_size, max_length, dtype, context, context_mask)
        states = {part: self._convolution(part).init_state(batch_size, max_length, dtype) for part in PARTS}
        fields = {field.name: getattr(cache, field.name) for field in dataclasses.fields(cache)}
        return ConvolvedCache(**fields, convolutions=states)

    def core_next(
        self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens, state: Any, after: Continuation
    ) -> tuple[jax.Array, Any]:
        found = {
            part: self._convolution(part).of_heads(heads, tokens, state.convolutions[part])
            for part, heads in zip(PARTS, (q, k, v), strict=True)
        }
        q, k, v = (found[part][0] for part in PARTS)
        return super().core_next(
            q, k, v, x, tokens, state.replace(convolutions={part: found[part][1] for part in PARTS}), after
        )

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, **known: Any) -> jax.Array:
        bias = self.distance_bias[...] * self.head_dim**-0.5
        tables = {"relative_keys": self.distance_key[...], "relative_bias": bias, "relative_origin": -self.reach}
        options = {**self.asked(q, k, **known), **tables, "relative_query": q}
        q = q + broadcast(self.content[...], q.shape, q.dtype)
        if self.sowing(Diagnostic, "attention"):
            self.sow(Diagnostic, "attention", attention_weights(q, k, **options))
        return attention(q, k.astype(q.dtype), v.astype(q.dtype), **options)

    def _convolution(self, part: str) -> HeadConvolution:
        convolution: HeadConvolution = getattr(self, f"{part}_convolution")
        return convolution
