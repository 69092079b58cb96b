"""Retention: Retentive Network, a Successor to Transformer for Large Language Models (Sun et al., 2023,
arXiv:2307.08621), section 2.

    S_t = gamma_h S_{t-1} + k_t v_t^T        o_t = q_t S_t / sqrt(K)        y = W_o (RMSNorm(o) * silu(W_g x))

Queries and keys have rotary embeddings. Each head has a fixed decay gamma. ViR (Hatamizadeh et al., 2023,
arXiv:2310.19731) uses no norm, no gate and no rotary embedding: y = W_o o.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from layers.linear import Linear
from layers.linear_attention.memory import per_head, remember
from layers.mixer import register_mixer
from layers.norm import GatedRMSNorm
from layers.position import Rotary
from layers.recurrent import Recurrent, RecurrentState
from layers.state_space.initialization import fan_in_uniform
from layers.tokens import Tokens, continued

Decays = Literal["powers", "paper"]


def log_decays(num_heads: int, kind: Decays) -> np.ndarray:
    """log gamma (heads,): gamma = 1 - 2^(-5 - h) for "powers", or the paper's, 1 - 1/32 to 1 - 1/512 equally spaced in
    log(1 - gamma).
    """
    if kind == "powers":
        return np.asarray([math.log1p(-(2.0 ** (-5 - head))) for head in range(num_heads)], np.float32)
    steps = np.linspace(5.0, 9.0, num_heads)
    return np.asarray([math.log1p(-(2.0**-step)) for step in steps], np.float32)


@struct.dataclass
class RetentionState(RecurrentState):
    """The state of retention.

    Attributes:
      length: (batch,) int32, tokens read so far of the current document.
    """

    length: jax.Array


@register_mixer("retention")
class Retention(Recurrent):
    """Multi-scale retention: linear attention with a fixed decay per head, rotary embeddings and a gate.

    Parameters: ``query``, ``key``, ``value``, ``gate``, ``out`` (linear), ``norm`` per head.
    """

    paper = (46,)

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        key_expansion: float = 1.0,
        value_expansion: float = 2.0,
        decays: Decays = "powers",
        rotary: Rotary | Mapping[str, Any] | float | None = 10000.0,
        gated: bool = True,
        use_bias: bool = False,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: number of heads, each with its gamma.
          key_expansion, value_expansion: features of the keys and of the values of all heads, / features.
          decays: "powers" is 1 - 2^(-5 - h), as in released code; "paper" is that of the paper's experiments.
          rotary: :class:`layers.position.Rotary`, its options or its base; None for no positions.
          gated: whether each head's output has a norm and a gate.
          use_bias: biases of the linear layers.
          norm_epsilon: epsilon of the norm of each head's output.

        Raises:
          ValueError: an unknown ``decays``, or heads that do not divide the features.
        """
        if decays not in ("powers", "paper"):
            raise ValueError(f'decays is "powers" or "paper", got {decays!r}')
        self.num_heads, self.decays, self.rotary = num_heads, decays, Rotary.of(rotary)
        self.key_dim, self.value_dim = (
            per_head(key_expansion * features, num_heads),
            per_head(value_expansion * features, num_heads),
        )
        common = {
            "use_bias": use_bias,
            "kernel_init": fan_in_uniform(),
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.query = Linear(features, num_heads * self.key_dim, **common)
        self.key = Linear(features, num_heads * self.key_dim, **common)
        self.value = Linear(features, num_heads * self.value_dim, **common)
        self.gate = Linear(features, num_heads * self.value_dim, **common) if gated else None
        norms: dict[str, Any] = {"gated": "after", "epsilon": norm_epsilon, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = GatedRMSNorm(self.value_dim, **norms) if gated else None
        self.out = Linear(num_heads * self.value_dim, features, **common)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return self.num_heads, self.key_dim, self.value_dim

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> RetentionState:
        state = super().init_state(batch_size, max_length, dtype)
        return RetentionState(
            state.convolutions, state.memory, state.segment, length=jnp.zeros((batch_size,), jnp.int32)
        )

    def recur(
        self, x: jax.Array, tokens: Tokens, state: RetentionState | None
    ) -> tuple[jax.Array, RetentionState | None]:
        def heads(linear: Linear) -> jax.Array:
            return linear(x).reshape(*x.shape[:2], self.num_heads, -1)

        q, k, v = heads(self.query), heads(self.key), heads(self.value)
        if state is None:
            places = tokens.places(x.shape[1])
        else:
            places, length, _ = continued(x.shape[1], state.length, state.segment, tokens.mask, tokens.segment_ids)
        if self.rotary is not None:
            q, k = self.rotary(q, places), self.rotary(k, places)
        y, memory = remember(q, k, v, jnp.asarray(log_decays(self.num_heads, self.decays)), tokens, state)
        if self.norm is not None and self.gate is not None:
            y = self.norm(y, heads(self.gate))
        y = self.out(y.reshape(*x.shape[:2], -1))
        return y, None if state is None else dataclasses.replace(state.after(tokens, memory=memory), length=length)
