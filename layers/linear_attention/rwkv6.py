"""Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence (Peng et al., 2024, arXiv:2404.05892), section
4.2, time mixing of RWKV-6 "Finch".

    d = x_{t-1} - x_t        x' = x_t + d m
    x_c = x_t + d (m_c + B_c tanh(A_c x'))                              for each c of w, k, v, r, g
    r, k, v = W x_r, W x_k, W x_v        g = silu(W x_g)        w = exp(-exp(b_w + B_w tanh(A_w x_w)))
    y_t = r_t (S_{t-1} + diag(u) k_t v_t^T)        S_t = diag(w_t) S_{t-1} + k_t v_t^T
    out = W_o (GroupNorm(y) * g)

A token reads the memory before its own update, and itself with the weights u.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.convolution import CausalConvolution
from layers.initializers import constant, orthogonal, uniform, zeros
from layers.linear import Linear
from layers.linear_attention.memory import per_head, remember
from layers.low_rank import LowRank
from layers.mixer import register_mixer
from layers.norm import group_norm
from layers.recurrent import Recurrent, RecurrentState
from layers.state_space.initialization import fan_in_uniform
from layers.token_shift import TokenShift, shifted
from layers.tokens import Tokens
from primitives.exponential import silu


@register_mixer("rwkv6")
class RWKV6(Recurrent):
    """Time mixing of RWKV-6: linear attention with a data-dependent decay per key channel. Its inputs interpolate
    between each token and the previous one with learned, data-dependent weights.

    Parameters: ``query``, ``key``, ``value``, ``gate``, ``out`` (linear); ``decay`` (low rank); ``shift`` (features,),
    m; ``decay_shift``, ``key_shift``, ``value_shift``, ``query_shift``, ``gate_shift`` (low rank, with m_c as the
    bias); ``bonus`` (heads, key_dim), u; ``norm`` and ``norm_bias``.
    """

    undecayed = ("bonus",)

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        key_expansion: float = 1.0,
        value_expansion: float = 1.0,
        shift_rank: int | None = None,
        decay_rank: int | None = None,
        index: int = 0,
        depth: int = 1,
        zero_init: bool = True,
        norm_epsilon: float = 64e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: number of heads, each with its own memory; released models have 64 features per head.
          key_expansion, value_expansion: features of the keys and of the values of all heads, / features.
          shift_rank, decay_rank: ranks of the low-rank projections; default the authors', 32 and 64, doubled from 4096
            features.
          index, depth: index of the block, and number of blocks of the model; they set initial values.
          zero_init: initialize the low-rank projections and the output to 0, as the authors do.
          norm_epsilon: epsilon of the norm of each head's output.

        Raises:
          ValueError: heads that do not divide the features.
        """
        self.num_heads, self.epsilon = num_heads, norm_epsilon
        self.key_dim = per_head(key_expansion * features, num_heads)
        self.value_dim = per_head(value_expansion * features, num_heads)
        keys, values = num_heads * self.key_dim, num_heads * self.value_dim
        made: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        wide = 2 if features >= 4096 else 1
        early, late = 1 - index / depth, index / max(depth - 1, 1)

        def low_rank(rank: int, out: int, bias: tuple[float, ...]) -> LowRank:
            inits: dict[str, Any] = {"down_init": zeros, "kernel_init": uniform(0.01)} if zero_init else {}
            return LowRank(features, rank, out, activation=jnp.tanh, bias_init=constant(bias), **inits, **made)

        def linear(inputs: int, out: int, init: Any) -> Linear:
            return Linear(inputs, out, use_bias=False, kernel_init=init, **made)

        def shares(power: float, less: float = 0.0) -> tuple[float, ...]:
            return tuple(1 - (n / features) ** (power * early) - less for n in range(features))

        rank = shift_rank or 32 * wide
        self.before = TokenShift(features, dtype=dtype)
        self.shift = nnx.Param(constant(shares(1.0))(None, (features,), param_dtype))
        self.decay_shift = low_rank(rank, features, shares(1.0))
        self.key_shift = low_rank(rank, features, shares(1.0))
        self.value_shift = low_rank(rank, features, shares(1.0, 0.3 * late))
        self.query_shift = low_rank(rank, features, shares(0.5))
        self.gate_shift = low_rank(rank, features, shares(0.5))
        place = [n / max(keys - 1, 1) for n in range(keys)]
        self.decay = low_rank(decay_rank or 64 * wide, keys, tuple(5 * p ** (0.7 + 1.3 * late) - 6 for p in place))
        own = tuple(late * (1 - p) + 0.1 * ((n + 1) % 3 - 1) for n, p in enumerate(place))
        of_heads = tuple(own[n : n + self.key_dim] for n in range(0, keys, self.key_dim))
        self.bonus = nnx.Param(constant(of_heads)(None, (num_heads, self.key_dim), param_dtype))
        self.query = linear(features, keys, orthogonal())
        self.key = linear(features, keys, orthogonal(0.1))
        self.value = linear(features, values, orthogonal())
        self.gate = linear(features, values, orthogonal(0.1))
        self.out = linear(values, features, zeros if zero_init else fan_in_uniform())
        self.norm = nnx.Param(constant(((index + 1) / depth) ** 0.7)(None, (values,), param_dtype))
        self.norm_bias = nnx.Param(zeros(None, (values,), param_dtype))

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return self.num_heads, self.key_dim, self.value_dim

    @property
    def convolutions(self) -> tuple[CausalConvolution, ...]:
        return (self.before,)

    def recur(
        self, x: jax.Array, tokens: Tokens, state: RecurrentState | None
    ) -> tuple[jax.Array, RecurrentState | None]:
        (before,), seen = self.convolve([x], tokens, state)
        (mixed,) = shifted(x, before, self.shift[...][None])
        difference = before - x
        xw, xk, xv, xr, xg = (
            x + difference * shares(mixed)
            for shares in (self.decay_shift, self.key_shift, self.value_shift, self.query_shift, self.gate_shift)
        )
        wide = jnp.promote_types(x.dtype, jnp.float32)
        read = (self.query(xr), self.key(xk), self.value(xv), -jnp.exp(self.decay(xw).astype(wide)))
        q, k, v, decay = (a.reshape(*x.shape[:2], self.num_heads, -1) for a in read)
        bonus = self.bonus[...].astype(wide)
        y, memory = remember(q, k, v, decay, tokens, state, scale=1.0, bonus=bonus)
        y = group_norm(y.astype(wide), self.norm[...], self.norm_bias[...], self.epsilon).astype(v.dtype)
        y = self.out(y * silu(self.gate(xg)))
        return y, state and state.after(tokens, memory=memory, convolutions=seen)
