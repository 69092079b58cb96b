"""Lightning attention: TransNormerLLM (Qin et al., 2023, arXiv:2307.14995), section 3, and Lightning Attention-2 (2024,
arXiv:2401.04658).

    q, k = silu(W_q x), silu(W_k x)   S_t = exp(-s_h) S_{t-1} + k_t v_t^T   y = W_o (u * RMSNorm(q_t S_t))   u = W_u x

The norm is over all heads together and has no parameters. Lightning Attention-2 is the order of computation: exact
products within chunks and a recurrent memory between them, as in ``linear_attention``. s are ALiBi's slopes, which
decrease from layer to layer: the last layer hardly forgets.

In the first layer of the released models, q and k have learned relative position encodings with angles a (LRPE: Qin et
al., 2023, arXiv:2307.09270), q <- [q cos(t a), q sin(t a)], so that their product depends on the distance.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.broadcast import widened
from layers.initializers import constant
from layers.linear import Linear
from layers.linear_attention.memory import per_head, remember
from layers.mixer import register_mixer
from layers.mlp import unchanged
from layers.module import Constant
from layers.norm import GatedRMSNorm
from layers.recurrent import Recurrent, RecurrentState
from layers.state_space.initialization import fan_in_uniform
from layers.tokens import Tokens, continued
from primitives.exponential import silu


def slopes(num_heads: int) -> list[float]:
    """ALiBi's slopes per head (arXiv:2108.12409): powers of 2^(-8 / heads); heads beyond a power of two get every other
    slope of the next power.
    """
    power = 2 ** int(math.log2(num_heads))
    return [2.0 ** (-8 * (i + 1) / power) for i in range(power)] + [
        2.0 ** (-4 * (2 * i + 1) / power) for i in range(num_heads - power)
    ]


@struct.dataclass
class TurningState(RecurrentState):
    """The state of a mixer whose queries and keys depend on their position.

    Attributes:
      length: (batch,) int32, tokens of the current document read so far.
    """

    length: jax.Array


@register_mixer("lightning_attention")
class LightningAttention(Recurrent):
    """Gated linear attention without scaling, with a fixed decay per head that is slower from layer to layer.

    Parameters: ``query``, ``key``, ``value``, ``gate``, ``out`` (linear); ``norm`` with ``use_scale``; ``angles``
    (heads * head_dim,) with ``turning``.
    """

    paper = (71, 72)

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        head_dim: int | None = None,
        index: int = 0,
        depth: int = 1,
        activate_values: bool = False,
        sigmoid_gate: bool = False,
        use_scale: bool = False,
        turning: bool = False,
        norm_epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads, head_dim: number of heads, each with its own memory, and features of their keys and values; default
            features / num_heads.
          index, depth: index of the block, and number of blocks of the model; slopes are multiplied by 1 - index /
            (depth - 1) + 1e-5.
          activate_values, sigmoid_gate, use_scale: apply silu to values, apply sigmoid to the gate, and use a norm with
            parameters; MiniMax-01 (arXiv:2501.08313) does all three.
          turning: use LRPE, learned angles of queries and keys; keys are twice as wide in the memory.
          norm_epsilon: epsilon of the norm.

        Raises:
          ValueError: heads that do not divide the features.
        """
        self.num_heads, self.head_dim = num_heads, head_dim or per_head(features, num_heads)
        self.activate_values = activate_values
        common = {
            "use_bias": False,
            "kernel_init": fan_in_uniform(),
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        inner = num_heads * self.head_dim
        self.query, self.key, self.value, self.gate = (Linear(features, inner, **common) for _ in range(4))
        activation = jax.nn.sigmoid if sigmoid_gate else unchanged
        self.norm = GatedRMSNorm(
            inner,
            use_scale=use_scale,
            gated="after",
            activation=activation,
            epsilon=norm_epsilon,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.out = Linear(inner, features, **common)
        factor = 1 - index / max(depth - 1, 1) + 1e-5
        # An array, so that all blocks of a stack share one compiled program.
        self.slopes = Constant(constant(tuple(factor * slope for slope in slopes(num_heads)))(None, (num_heads,)))
        angles = tuple(10000.0 ** (-2 * n / inner) for n in range(inner))
        first = constant(angles)(None, (inner,), param_dtype) if turning else None
        self.angles = nnx.Param(first) if turning else None

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return self.num_heads, (1 if self.angles is None else 2) * self.head_dim, self.head_dim

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> RecurrentState:
        state = super().init_state(batch_size, max_length, dtype)
        if self.angles is None:
            return state
        return TurningState(state.convolutions, state.memory, state.segment, length=jnp.zeros((batch_size,), jnp.int32))

    def recur(
        self, x: jax.Array, tokens: Tokens, state: RecurrentState | None
    ) -> tuple[jax.Array, RecurrentState | None]:
        q, k, v = silu(self.query(x)), silu(self.key(x)), self.value(x)
        v = silu(v) if self.activate_values else v
        q, k, v = (a.reshape(*x.shape[:2], self.num_heads, -1) for a in (q, k, v))
        changes: dict[str, Any] = {}
        if self.angles is not None:
            places = tokens.places(x.shape[1])
            if isinstance(state, TurningState):
                known = (state.length, state.segment, tokens.mask, tokens.segment_ids)
                places, changes["length"], _ = continued(x.shape[1], *known)
            angles = widened(self.angles[...]).reshape(self.num_heads, -1) * places[..., None, None]
            q, k = (
                jnp.concatenate([a * jnp.cos(angles), a * jnp.sin(angles)], axis=-1).astype(a.dtype) for a in (q, k)
            )
        y, memory = remember(q, k, v, -self.slopes[...], tokens, state, scale=1.0)
        y = self.out(self.norm(y.reshape(*x.shape[:2], -1), self.gate(x)))
        return y, state and state.after(tokens, memory=memory, **changes)
