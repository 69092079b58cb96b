"""Gated Linear Attention Transformers with Hardware-Efficient Training (Yang et al., 2023, arXiv:2312.06635), section
4.

S_t = diag(exp g_t) S_{t-1} + k_t v_t^T        o_t = q_t S_t / sqrt(K)        g = log sigmoid(W_2 W_1 x + b) / 16
y = W_o (RMSNorm(o) * silu(W_g x))
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.convolution import CausalConvolution
from layers.linear import Linear
from layers.linear_attention.memory import per_head, remember
from layers.low_rank import LowRank
from layers.mixer import register_mixer
from layers.norm import GatedRMSNorm
from layers.recurrent import Recurrent, RecurrentState
from layers.state_space.initialization import fan_in_uniform
from layers.tokens import Tokens
from primitives.exponential import silu, softplus


@register_mixer("gated_linear_attention")
class GatedLinearAttention(Recurrent):
    """Linear attention with a data-dependent decay per key channel.

    Parameters: ``query``, ``key``, ``value``, ``gate``, ``out`` (linear), ``decay`` (low rank), ``norm`` per head;
    ``query_conv``, ``key_conv``, ``value_conv`` with convolutions.
    """

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        key_expansion: float = 0.5,
        value_expansion: float = 1.0,
        decay_rank: int = 16,
        decay_divisor: float = 16.0,
        conv_size: int | None = None,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: number of heads, each with its own memory.
          key_expansion, value_expansion: features of the keys and of the values of all heads, / features.
          decay_rank: rank of the projection from a token to its decays.
          decay_divisor: divisor of the log decays, by which memories last longer.
          conv_size: kernel size of the convolutions of queries, keys and values, each followed by silu; None for
            neither.
          norm_epsilon: epsilon of the norm of each head's output.

        Raises:
          ValueError: heads that do not divide the features.
        """
        self.num_heads, self.decay_divisor = num_heads, decay_divisor
        self.key_dim, self.value_dim = (
            per_head(key_expansion * features, num_heads),
            per_head(value_expansion * features, num_heads),
        )
        keys, values = num_heads * self.key_dim, num_heads * self.value_dim
        made = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        common = {"use_bias": False, "kernel_init": fan_in_uniform(), **made}
        self.query, self.key, self.value = (
            Linear(features, keys, **common),
            Linear(features, keys, **common),
            Linear(features, values, **common),
        )
        self.query_conv = CausalConvolution(keys, conv_size, use_bias=False, **made) if conv_size else None
        self.key_conv = CausalConvolution(keys, conv_size, use_bias=False, **made) if conv_size else None
        self.value_conv = CausalConvolution(values, conv_size, use_bias=False, **made) if conv_size else None
        self.decay = LowRank(features, decay_rank, keys, use_bias=True, **made)
        self.gate = Linear(features, values, **common)
        self.norm = GatedRMSNorm(
            self.value_dim, gated="after", epsilon=norm_epsilon, param_dtype=param_dtype, rngs=rngs
        )
        self.out = Linear(values, features, **common)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return self.num_heads, self.key_dim, self.value_dim

    @property
    def convolutions(self) -> tuple[CausalConvolution, ...]:
        return tuple(conv for conv in (self.query_conv, self.key_conv, self.value_conv) if conv is not None)

    def recur(
        self, x: jax.Array, tokens: Tokens, state: RecurrentState | None
    ) -> tuple[jax.Array, RecurrentState | None]:
        read, seen = self.convolve([linear(x) for linear in (self.query, self.key, self.value)], tokens, state)
        read = [silu(a) for a in read] if self.convolutions else read
        decay = self.decay(x)
        decay = -softplus(-decay.astype(jnp.promote_types(x.dtype, jnp.float32))) / self.decay_divisor
        q, k, v, decay = (a.reshape(*x.shape[:2], self.num_heads, -1) for a in (*read, decay))
        y, memory = remember(q, k, v, decay, tokens, state)
        y = self.norm(y, self.gate(x).reshape(y.shape))
        return self.out(y.reshape(*x.shape[:2], -1)), state and state.after(tokens, memory=memory, convolutions=seen)
