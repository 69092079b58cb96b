"""HGRN2: Gated Linear RNNs with State Expansion (Qin et al., 2024, arXiv:2404.07904), section 3.2.

f = b + (1 - b) sigmoid(W_f x)        S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T        o_t = silu(W_q x)_t S_t / sqrt(K)
y = W_o RMSNorm(o)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from layers.linear import Linear
from layers.linear_attention.hgrn import check_lower_bound, forget_gate
from layers.linear_attention.memory import per_head, remember
from layers.mixer import Mixer, register_mixer
from layers.norm import create_norm
from layers.recurrent import Recurrent, RecurrentState
from layers.state_space.initialization import fan_in_uniform
from layers.tokens import Tokens
from primitives.exponential import silu


@register_mixer("hgrn2")
class HGRN2(Recurrent):
    """Gated linear attention whose keys are 1 - f, what the memory forgets, so that it remains an average of values.

    Parameters: ``query``, ``forget``, ``value``, ``out`` (linear), ``norm`` over all heads.
    """

    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {**Mixer.sharding, "forget.kernel": (None, "tensor")}

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        head_dim: int | None = None,
        lower_bound: float | None = 0.0,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: number of heads, each with its own memory and features / num_heads value features.
          head_dim: key features of a head; default features / num_heads.
          lower_bound: b, the lower bound of the forget gate. Models increase it from layer to layer with a parameter of
            their own: if None, each call takes b, float32 (num_heads * head_dim,), as an argument.
          norm_epsilon: epsilon of the output norm.

        Raises:
          ValueError: heads that do not divide the features, or a bound outside [0, 1).
        """
        check_lower_bound("HGRN2", lower_bound)
        self.num_heads, self.value_dim, self.lower_bound = num_heads, per_head(features, num_heads), lower_bound
        self.shares = lower_bound is None
        self.key_dim = head_dim or self.value_dim
        common = {
            "use_bias": False,
            "kernel_init": fan_in_uniform(),
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.query = Linear(features, num_heads * self.key_dim, **common)
        self.forget = Linear(features, num_heads * self.key_dim, **common)
        self.value = Linear(features, features, **common)
        self.norm = create_norm("rms", features, epsilon=norm_epsilon, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.out = Linear(features, features, **common)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return self.num_heads, self.key_dim, self.value_dim

    def recur(
        self, x: jax.Array, tokens: Tokens, state: RecurrentState | None, /, *own: jax.Array
    ) -> tuple[jax.Array, RecurrentState | None]:
        decay, k = forget_gate(self.forget(x), own[0] if self.shares else self.lower_bound)
        q, k, v, decay = (
            a.reshape(*x.shape[:2], self.num_heads, -1)
            for a in (silu(self.query(x)), k.astype(x.dtype), self.value(x), decay)
        )
        y, memory = remember(q, k, v, decay, tokens, state)
        return self.out(self.norm(y.reshape(x.shape))), state and state.after(tokens, memory=memory)
