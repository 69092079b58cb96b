"""Attention to a recurrent state that another block keeps: the feedback of Block-Recurrent Transformers (Hutchins et
al., NeurIPS 2022, arXiv:2203.07852).

    y = W_o softmax(b q K_s^T) V_s          q of length 1, b a learned scale a head

K_s and V_s are keys and values of the recurrent block's state (:mod:`layers.attention.block_recurrent`), which all
other blocks share. The authors concatenate these heads with those of self-attention before one output projection; here
each has its own and the outputs are added, which is the same function.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import broadcast
from layers.initializers import lecun_normal, ones
from layers.linear import Linear
from layers.mixer import Mixer, finite_padding
from layers.module import LayerOptions, parameter
from layers.norm import unit
from layers.tokens import Tokens
from pallas_kernels import attention


class StateReader(Mixer):
    """Cross-attention to the keys and values passed between blocks, (batch, N, heads, head_dim) each. Every token sees
    all of them, so they must be those of the state before the first token.

    Parameters: ``query``, ``out`` (linear, no biases), ``scale`` (heads,).
    """

    supports_causal = True
    causal = True
    shares = True

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        head_dim: int,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        num_heads, head_dim: those of the state's keys.
        """
        made: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.num_heads, inner = num_heads, num_heads * head_dim
        self.query = Linear(features, inner, use_bias=False, kernel_init=lecun_normal, **made)
        self.out = Linear(inner, features, use_bias=False, kernel_init=lecun_normal, **made)
        self.scale = parameter(ones, (num_heads,), made)

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens, *beside: Any) -> Any:
        key, value = beside[0]
        q = self.query(finite_padding(x, tokens.mask)).reshape(*x.shape[:2], self.num_heads, -1)
        q = unit(q) * broadcast(self.scale[...][:, None], q.shape, q.dtype)
        y = attention(q, key.astype(q.dtype), value.astype(q.dtype), scale=1.0)
        return self.out(y.reshape(*x.shape[:2], -1)), beside[0]

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> tuple[()]:
        """Empty: the state it attends to belongs to another block."""
        return ()

    def mix_next(self, x: jax.Array, state: tuple[()], tokens: Tokens, *beside: Any) -> Any:
        y, shared = self.mix(x, tokens, *beside)
        return y, state, shared
