"""The matrix LSTM: xLSTM (Beck et al., 2024, arXiv:2405.04517), section 2.3, in the form of xLSTM 7B (2025,
arXiv:2503.13427), section 2.

    i, f = cap(W_i x + b_i), cap(W_f x + b_f)        cap(a) = c tanh(a / c)
    C_t = sigmoid(f_t) C_{t-1} + exp(i_t) k_t v_t^T        n_t = sigmoid(f_t) n_{t-1} + exp(i_t) k_t
    h_t = (q_t C_t / sqrt(K)) / max(|q_t n_t| / sqrt(K), 1)        y = W_o (LayerNorm(h) * sigmoid(W_g x))

Both memories are stored times exp(-m_t) (:mod:`layers.linear_attention.memory`), so that the floor 1 becomes exp(-m_t).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import constant
from layers.linear import Linear
from layers.linear_attention.memory import WeightedState, exponential_weights, per_head, remember, sums, with_ones
from layers.mixer import register_mixer
from layers.norm import GatedRMSNorm
from layers.recurrent import Recurrent, empty
from layers.state_space.initialization import fan_in_uniform
from layers.tokens import Tokens
from primitives.exponential import softplus


@register_mixer("mlstm")
class MLSTM(Recurrent):
    """An LSTM with a matrix memory and an exponential input gate, which lets a token outweigh all earlier ones.

    Parameters: ``query``, ``key``, ``value``, ``gate``, ``out`` (linear), ``input_gate`` and ``forget_gate`` (linear,
    one output per head, with bias), ``norm`` per head.
    """

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        key_expansion: float = 0.5,
        value_expansion: float = 1.0,
        cap: float = 15.0,
        input_bias: float = -10.0,
        use_bias: bool = False,
        norm_epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: number of heads, each with its own memory.
          key_expansion, value_expansion: features of the keys and of the values of all heads, / features.
          cap: c, soft cap of the gates before their activation.
          input_bias: initial bias of the input gates; with the default, that of the released model, little is written
            to the memories at first.
          use_bias: biases of all projections except the input and forget gates, which always have them.
          norm_epsilon: epsilon of the norm of each head's output, also added to the denominator of h.

        Raises:
          ValueError: heads that do not divide the features.
        """
        self.num_heads, self.cap, self.epsilon = num_heads, cap, norm_epsilon
        self.key_dim, self.value_dim = (
            per_head(key_expansion * features, num_heads),
            per_head(value_expansion * features, num_heads),
        )
        made = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        common = {"use_bias": use_bias, "kernel_init": fan_in_uniform(), **made}
        values = num_heads * self.value_dim
        self.query = Linear(features, num_heads * self.key_dim, **common)
        self.key = Linear(features, num_heads * self.key_dim, **common)
        self.value = Linear(features, values, **common)
        self.gate = Linear(features, values, **common)
        self.input_gate = Linear(
            features, num_heads, kernel_init=fan_in_uniform(), bias_init=constant(input_bias), **made
        )
        biases = tuple(3.0 + 3.0 * head / max(num_heads - 1, 1) for head in range(num_heads))
        self.forget_gate = Linear(features, num_heads, kernel_init=fan_in_uniform(), bias_init=constant(biases), **made)
        self.norm = GatedRMSNorm(
            values,
            groups=num_heads,
            gated="after",
            activation=jax.nn.sigmoid,
            epsilon=norm_epsilon,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.out = Linear(values, features, **common)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return self.num_heads, self.key_dim, self.value_dim + 1  # n is the last column

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> WeightedState:
        state = super().init_state(batch_size, max_length, dtype)
        return WeightedState(
            state.convolutions, state.memory, state.segment, largest=empty((batch_size, self.num_heads), dtype)
        )

    def recur(
        self, x: jax.Array, tokens: Tokens, state: WeightedState | None
    ) -> tuple[jax.Array, WeightedState | None]:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        gates = [self.cap * jnp.tanh(gate(x).astype(wide) / self.cap) for gate in (self.input_gate, self.forget_gate)]
        qkv = [linear(x).reshape(*x.shape[:2], self.num_heads, -1) for linear in (self.query, self.key, self.value)]
        (q, k, v), (written, kept) = qkv, gates
        h, new = matrix_memory(q, k, v, written, kept, tokens, state, self.epsilon)
        # RMSNorm of the centered h is LayerNorm.
        h = (h - jnp.mean(h, axis=-1, keepdims=True)).astype(x.dtype).reshape(*x.shape[:2], -1)
        return self.out(self.norm(h, self.gate(x))), new


def matrix_memory(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    written: jax.Array,
    kept: jax.Array,
    tokens: Tokens,
    state: WeightedState | None,
    epsilon: float = 1e-6,
) -> tuple[jax.Array, WeightedState | None]:
    """The mLSTM recurrence.

    Args:
      q, k, v: (batch, length, heads, size).
      written, kept: (batch, length, heads), i and f before their activation, at least float32.
      epsilon: added to the denominator of h.

    Returns:
      h (batch, length, heads, size of v), at least float32, and the new state.
    """
    weight, decay, largest = exponential_weights(written, -softplus(-kept), 0.0, tokens, state)
    y, memory = remember(q, (weight[..., None] * k).astype(k.dtype), with_ones(v), decay, tokens, state)
    value, count = sums(y)
    h = value / (jnp.maximum(jnp.abs(count), jnp.exp(-largest)[..., None]) + epsilon)
    return h, state and dataclasses.replace(state.after(tokens, memory=memory), largest=largest[:, -1])
