"""RWKV-7 "Goose" with Expressive Dynamic State Evolution (Peng et al., 2025, arXiv:2503.14456), section 4, time mixing.

    x_c = x_t + (x_{t-1} - x_t) m_c                         for each c of r, w, k, v, a, g
    r, k, v = W x_r, W x_k, W x_v        w = exp(-e^{-1/2} sigmoid(lora_w(x_w)))        a = sigmoid(lora_a(x_a))
    v <- v + (v_1 - v) sigmoid(lora_v(x_v))                 v_1: the first block's values
    p = k m_k / |k m_k|        k <- k (1 + (a - 1) m_a)
    S_t = diag(w) S_{t-1} - (a p) (p^T S_{t-1}) + k v^T
    y = W_o ((GroupNorm(r S_t) + (r . (k u)) v) * lora_g(x_g))

A token takes two steps of the delta rule: the first removes what the state holds under p, read with the key p / w from
the state before the decay, and the second adds k v^T. w is at least 0.545, so the quotient is safe.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import broadcast, widened
from layers.convolution import CausalConvolution
from layers.delta.memory import correct
from layers.initializers import Initializer, constant, orthogonal, zeros
from layers.linear import Linear
from layers.linear_attention.memory import per_head
from layers.low_rank import LowRank
from layers.mixer import State, register_mixer, without_padding
from layers.norm import group_norm
from layers.recurrent import Recurrent, RecurrentState
from layers.state_space.initialization import fan_in_uniform
from layers.token_shift import TokenShift, shifted
from layers.tokens import Tokens


def _rank(features: int, factor: float) -> int:
    """The authors' rank of a low-rank projection: a multiple of 32 near factor * sqrt(features)."""
    return max(32, round(factor * math.sqrt(features) / 32) * 32)


@register_mixer("rwkv7")
class RWKV7(Recurrent):
    """Time mixing of RWKV-7: a delta rule with a decay per key channel that removes and writes under different keys.

    With ``value_residual`` the values are interpolated toward those of the first block, (batch, length, features),
    which blocks pass on: the first block overwrites the array that it receives with its values, and the others read it.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear); ``decay``, ``rate``, ``gate`` and, with
    ``value_residual`` after the first block, ``residual`` (low rank); ``shift`` (6, features), m of r, w, k, v, a, g;
    ``removal``, ``replacement`` and ``bonus`` (features,), m_k, m_a and u; ``norm`` and ``norm_bias`` (features,).
    """

    undecayed = ("shift",)

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        index: int = 0,
        depth: int = 1,
        value_residual: bool = False,
        decay_rank: int | None = None,
        rate_rank: int | None = None,
        residual_rank: int | None = None,
        gate_rank: int | None = None,
        zero_init: bool = True,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: number of heads, each with its own memory; released models have 64 features per head.
          index, depth: index of the block, and number of blocks of the model; they set initial values and which block
            is first.
          value_residual: interpolate values toward those of the first block. The model must pass an array for them.
          decay_rank, rate_rank, residual_rank, gate_rank: ranks of the low-rank projections to w, to a, to the weight
            of the first block's values, and to the gate; default the authors' for the model width and head size.
          zero_init: initialize the low-rank projections and the output to 0, as the authors do.
          norm_epsilon: the norm of each head's output has the epsilon norm_epsilon * head_dim.

        Raises:
          ValueError: heads that do not divide the features, or heads of one feature.
        """
        size = per_head(features, num_heads)
        if size == 1:
            raise ValueError(f"RWKV7: {num_heads} heads leave one feature each: a head needs at least 2")
        self.num_heads, self.head_dim, self.epsilon = num_heads, size, size * norm_epsilon
        self.shares = value_residual
        made: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        begun = _beginnings(features, size, index, depth)

        def low_rank(rank: int, bias: Initializer | None, activation: Any = None) -> LowRank:
            return LowRank(
                features,
                rank,
                features,
                activation=activation,
                use_bias=bias is not None,
                kernel_init=orthogonal(0.1),
                down_init=zeros if zero_init else None,
                bias_init=bias or zeros,
                **made,
            )

        self.shift = nnx.Param(begun["shift"](None, (6, features), param_dtype))
        self.before = TokenShift(features, dtype=dtype)
        self.query = Linear(features, features, use_bias=False, kernel_init=orthogonal(), **made)
        self.key = Linear(features, features, use_bias=False, kernel_init=orthogonal(0.1), **made)
        self.value = Linear(features, features, use_bias=False, kernel_init=orthogonal(), **made)
        self.out = Linear(
            features, features, use_bias=False, kernel_init=zeros if zero_init else fan_in_uniform(), **made
        )
        wide = size / 64
        self.decay = low_rank(decay_rank or _rank(features, 2.5 * wide), begun["decay"], jnp.tanh)
        self.rate = low_rank(rate_rank or _rank(features, 2.5 * wide), begun["rate"])
        self.gate = low_rank(gate_rank or _rank(features, 5.0), None, jax.nn.sigmoid)
        self.residual = (
            low_rank(residual_rank or _rank(features, 1.7 * wide), begun["residual"])
            if value_residual and index
            else None
        )
        self.removal = nnx.Param(begun["removal"](None, (features,), param_dtype))
        self.replacement = nnx.Param(constant(1.02)(None, (features,), param_dtype))
        self.bonus = nnx.Param(constant(-0.04)(None, (features,), param_dtype))
        self.norm = nnx.Param(constant(((index + 1) / depth) ** 0.7)(None, (features,), param_dtype))
        self.norm_bias = nnx.Param(zeros(None, (features,), param_dtype))

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return self.num_heads, self.head_dim, self.head_dim

    @property
    def convolutions(self) -> tuple[CausalConvolution, ...]:
        return (self.before,)

    def mix(self, x: jax.Array, tokens: Tokens, /, *beside: Any) -> Any:
        y, values, _ = self._read(without_padding(x, tokens.mask), tokens, None, *beside[:1])
        return (y, values) if self.shares else y

    def mix_next(self, x: jax.Array, state: State, tokens: Tokens, /, *beside: Any) -> Any:
        y, values, new = self._read(without_padding(x, tokens.mask), tokens, state, *beside[:1])
        new = jax.tree.map(lambda new, old: new.astype(old.dtype), new, state)
        return (y, new, values) if self.shares else (y, new)

    def _read(
        self, x: jax.Array, tokens: Tokens, state: RecurrentState | None, values: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None, RecurrentState | None]:
        """The output, the values to pass on, and the new state."""
        if self.shares and values is None:
            raise ValueError(
                "RWKV7 with value_residual needs the values that blocks pass on: give its layers.Stack shared="
            )
        (before,), seen = self.convolve([x], tokens, state)
        xr, xw, xk, xv, xa, xg = shifted(x, before, self.shift[...])
        wide = jnp.promote_types(x.dtype, jnp.float32)
        q, k, v = self.query(xr), self.key(xk), self.value(xv)
        if values is not None:
            if self.residual is None:
                values = v.astype(values.dtype)
            else:
                v = v + (values.astype(v.dtype) - v) * jax.nn.sigmoid(self.residual(xv))
        decay = -math.exp(-0.5) * jax.nn.sigmoid(self.decay(xw).astype(wide))
        rate = jax.nn.sigmoid(self.rate(xa))
        removed = self._heads(k.astype(wide) * widened(self.removal[...]))
        removed = removed * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(removed), axis=-1, keepdims=True), 1e-24))
        k = k * (1 + (rate - 1) * broadcast(self.replacement[...], x.shape, k.dtype))
        q, k, v, decay, rate = map(self._heads, (q, k, v, decay, rate))
        ones = jnp.ones((x.shape[0], 2 * x.shape[1], self.num_heads), wide)
        y, memory = correct(
            q,
            _pairs(removed.astype(k.dtype) * rate, k),
            _pairs(jnp.zeros_like(v), v),
            ones,
            decay,
            tokens,
            state,
            read_key=_pairs((removed * jnp.exp(-decay)).astype(k.dtype), jnp.zeros_like(k)),
            scale=1.0,
        )
        weights = self._heads(broadcast(self.bonus[...], x.shape, k.dtype))
        bonus = jnp.sum((q * k * weights).astype(wide), axis=-1, keepdims=True)
        y = group_norm(y.astype(wide), self.norm[...], self.norm_bias[...], self.epsilon) + (bonus * v).reshape(x.shape)
        y = self.out((y * self.gate(xg).astype(wide)).astype(v.dtype))
        return y, values, state and state.after(tokens, memory=memory, convolutions=seen)

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)


def _pairs(first: jax.Array, second: jax.Array) -> jax.Array:
    """The two steps of each token, (batch, 2 * length, ...)."""
    return jnp.stack([first, second], axis=2).reshape(first.shape[0], -1, *first.shape[2:])


def _beginnings(features: int, size: int, index: int, depth: int) -> dict[str, Initializer]:
    """Initial values of parameters in the authors' training code, for block ``index`` of ``depth``."""
    place = [n / max(features - 1, 1) for n in range(features)]
    early, late = 1 - index / depth, index / max(depth - 1, 1)

    def zigzag(n: int) -> float:
        z = 2 * (n % size) / (size - 1) - 1
        return z * abs(z)

    def row(power: float) -> tuple[float, ...]:
        return tuple(1 - (n / features) ** (power * early) for n in range(features))

    linear = [p - 0.5 for p in place]
    return {
        "shift": constant(tuple(row(power) for power in (0.2, 0.9, 0.7, 0.7, 0.9, 0.2))),
        "decay": constant(tuple(-5.5 + 6 * p ** (1 + late**0.3) + 2.5 * zigzag(n) for n, p in enumerate(place))),
        "rate": constant(tuple(-0.19 + 0.3 * zigzag(n) + 0.4 * x for n, x in enumerate(linear))),
        "residual": constant(tuple(0.73 - 0.4 * x for x in linear)),
        "removal": constant(tuple(0.71 - 0.1 * x for x in linear)),
    }
