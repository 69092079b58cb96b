"""The matrix LSTM between projections: xLSTM (Beck et al., 2024, arXiv:2405.04517), section 2.4 and figure 10.

    u, z = W_u x, W_z x        a = silu(conv(u))        q, k, v = B_q a, B_k a, B_v u        B: block-diagonal
    i, f = W_i [q, k, v] + b_i, W_f [q, k, v] + b_f        h: mLSTM of q, k, v, i and f
    y = W_o ((GroupNorm(h) + s a) * silu(z))

The mLSTM is that of :mod:`layers.linear_attention.mlstm`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.convolution import CausalConvolution
from layers.initializers import constant, normal, ones, zeros
from layers.linear import BlockLinear, Linear
from layers.linear_attention.memory import WeightedState, per_head
from layers.linear_attention.mlstm import matrix_memory
from layers.mixer import register_mixer
from layers.norm import group_norm
from layers.recurrent import Recurrent, empty
from layers.tokens import Tokens
from primitives.exponential import silu


@register_mixer("projected_mlstm")
class ProjectedMLSTM(Recurrent):
    """The mLSTM block of the original xLSTM: an mLSTM on expanded features, with a convolution, a skip and a gate.

    Parameters: ``up``, ``gate``, ``out`` (linear), ``conv``, ``query``, ``key``, ``value`` (linear, in blocks),
    ``input_gate`` and ``forget_gate`` (linear, one output per head, with bias), ``norm`` (channels,), to which 1 is
    added, and ``skip`` (channels,), s.
    """

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        channels: int | None = None,
        block: int = 4,
        conv_size: int = 4,
        depth: int = 1,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: number of heads, each with its own memory.
          channels: features of u, z and all heads together; default 2 * features, rounded up to a multiple of 64 if
            ``features`` is at least 64.
          block: features per diagonal block of the query, key and value projections.
          conv_size: kernel size of the convolution in tokens.
          depth: number of blocks of the model; the initial output weights are divided by it.
          norm_epsilon: epsilon of the norm of each head's output.

        Raises:
          ValueError: heads or blocks that do not divide the channels.
        """
        channels = channels or (2 * features if features < 64 else -(-2 * features // 64) * 64)
        self.num_heads, self.head_dim, self.epsilon = num_heads, per_head(channels, num_heads), norm_epsilon
        made: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        small = {"use_bias": False, "kernel_init": normal((2 / (5 * features)) ** 0.5), **made}
        self.up = Linear(features, channels, **small)
        self.gate = Linear(features, channels, **small)
        self.conv = CausalConvolution(channels, conv_size, **made)
        blocks = per_head(channels, block)
        self.query = BlockLinear(channels, blocks, use_bias=False, **made)
        self.key = BlockLinear(channels, blocks, use_bias=False, **made)
        self.value = BlockLinear(channels, blocks, use_bias=False, **made)
        biases = tuple(3.0 + 3.0 * head / max(num_heads - 1, 1) for head in range(num_heads))
        zero: dict[str, Any] = {"kernel_init": zeros, **made}
        self.input_gate = Linear(3 * channels, num_heads, bias_init=normal(0.1), **zero)
        self.forget_gate = Linear(3 * channels, num_heads, bias_init=constant(biases), **zero)
        self.norm = nnx.Param(zeros(None, (channels,), param_dtype))
        self.skip = nnx.Param(ones(None, (channels,), param_dtype))
        self.out = Linear(channels, features, use_bias=False, kernel_init=normal(2 / depth / features**0.5), **made)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return self.num_heads, self.head_dim, self.head_dim + 1

    @property
    def convolutions(self) -> tuple[CausalConvolution, ...]:
        return (self.conv,)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> WeightedState:
        state = super().init_state(batch_size, max_length, dtype)
        largest = empty((batch_size, self.num_heads), dtype)
        return WeightedState(state.convolutions, state.memory, state.segment, largest=largest)

    def recur(
        self, x: jax.Array, tokens: Tokens, state: WeightedState | None
    ) -> tuple[jax.Array, WeightedState | None]:
        u = self.up(x)
        (seen_by,), seen = self.convolve([u], tokens, state)
        activated = silu(seen_by)
        qkv = [self.query(activated), self.key(activated), self.value(u)]
        wide = jnp.promote_types(u.dtype, jnp.float32)
        together = jnp.concatenate(qkv, axis=-1)
        written, kept = (gate(together).astype(wide) for gate in (self.input_gate, self.forget_gate))
        q, k, v = (a.reshape(*x.shape[:2], self.num_heads, -1) for a in qkv)
        h, new = matrix_memory(q, k, v, written, kept, tokens, state)
        h = group_norm(h, 1 + self.norm[...].astype(wide), None, self.epsilon)
        h = (h + self.skip[...].astype(wide) * activated).astype(u.dtype)
        y = self.out(h * silu(self.gate(x)))
        return y, new and new.after(tokens, convolutions=seen)
