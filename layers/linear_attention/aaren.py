"""Aaren: Attention as an RNN (Feng et al., 2024, arXiv:2405.13956), section 3.

    y_t = W_o sum_{s <= t} a_s v_s / sum_{s <= t} a_s        a_s = exp(q . k_s / sqrt(K))

The query q is one learned vector per head, so the softmax over all tokens so far is a recurrence over the sum of
weights, the sum of weighted values and the largest logit, relative to which the weights are stored
(:mod:`layers.linear_attention.memory`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import widened
from layers.initializers import normal
from layers.linear import Linear
from layers.linear_attention.memory import WeightedState, exponential_weights, per_head, remember, sums, with_ones
from layers.mixer import register_mixer
from layers.recurrent import Recurrent
from layers.state_space.initialization import fan_in_uniform
from layers.tokens import Tokens


@register_mixer("aaren")
class Aaren(Recurrent):
    """Softmax attention of a learned query to the tokens so far, in constant memory.

    Causal only: bidirectional, all tokens would have the same output.

    Parameters: ``query`` (heads, head_dim), ``key``, ``value``, ``out`` (linear).
    """

    paper = (11,)

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: number of heads, each with one query.
          use_bias: biases of the value and output projections.

        Raises:
          ValueError: heads that do not divide the features.
        """
        self.num_heads, self.head_dim = num_heads, per_head(features, num_heads)
        common = {"kernel_init": fan_in_uniform(), "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = nnx.Param(normal(1.0)(rngs.params(), (num_heads, self.head_dim), param_dtype))
        self.key = Linear(features, features, use_bias=False, **common)  # a bias would shift all logits equally
        self.value = Linear(features, features, use_bias=use_bias, **common)
        self.out = Linear(features, features, use_bias=use_bias, **common)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return self.num_heads, 1, self.head_dim + 1  # the sum of weights is the last column

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> WeightedState:
        state = super().init_state(batch_size, max_length, dtype)
        largest = jnp.full((batch_size, self.num_heads), -jnp.inf, state.memory.dtype)
        return WeightedState(state.convolutions, state.memory, state.segment, largest=largest)

    def recur(
        self, x: jax.Array, tokens: Tokens, state: WeightedState | None
    ) -> tuple[jax.Array, WeightedState | None]:
        k, v = (linear(x).reshape(*x.shape[:2], self.num_heads, -1) for linear in (self.key, self.value))
        query = widened(self.query[...])
        logits = jnp.einsum("bthk,hk->bth", k.astype(query.dtype), query) / math.sqrt(self.head_dim)
        weight, decay, largest = exponential_weights(logits, None, -math.inf, tokens, state)
        k = weight[..., None].astype(v.dtype)
        y, memory = remember(jnp.ones_like(k), k, with_ones(v), decay, tokens, state, scale=1.0)
        value, count = sums(y)
        y = (value / jnp.where(count > 0, count, 1)).astype(v.dtype)  # 0 if only padding has been read
        y = self.out(y.reshape(x.shape))
        return y, None if state is None else dataclasses.replace(
            state.after(tokens, memory=memory), largest=largest[:, -1]
        )
