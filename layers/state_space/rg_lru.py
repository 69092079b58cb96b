"""Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models (De et al., 2024,
arXiv:2402.19427), sections 2.3 and 2.4: the recurrent block and its RG-LRU.

u = conv(W_u x);  r = sigmoid(W_r u);  i = sigmoid(W_i u)        log a_t = -8 r_t softplus(L)
h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t u_t        y = W_o (h * gelu(W_g x))

At the first token of a document the factor sqrt(1 - a^2) is 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.convolution import CausalConvolution
from layers.initializers import Transformed, Uniform
from layers.linear import BlockLinear, Linear
from layers.mixer import Mixer, register_mixer
from layers.recurrent import Recurrent, RecurrentState, accumulate, empty
from layers.tokens import Tokens
from primitives.exponential import softplus

SHARPNESS = 8.0
"""c, the factor of the log decay."""

RATES = Transformed("inverse_softplus_rate", Uniform(0.9**2, 0.999**2))
"""Initial L: exp(-2 softplus(L)) is uniform, and a channel keeps 0.9 to 0.999 of its state per token if 8 r = 1."""

# Below it the derivative of the square root would exceed 1000, and be infinite at 0.
LEAST_WRITTEN = 1 / (4 * 1000**2)


@struct.dataclass
class GriffinState(RecurrentState):
    """The state of an RG-LRU.

    Attributes:
      begun: (batch,) bool, whether any token of the row has been read.
    """

    begun: jax.Array


@register_mixer("rg_lru")
class RGLRU(Recurrent):
    """The real-gated linear recurrent unit: one state value per channel, with input and recurrence gates for each head.

    Parameters: ``input``, ``gate``, ``out_proj`` (linear, with biases), ``conv``, ``input_gate``, ``recurrence_gate``
    (block-diagonal linear, one block per head), ``rates`` (channels,).
    """

    undecayed = ("rates",)
    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        **Mixer.sharding,
        "input.kernel": (None, "tensor"),
        "out_proj.kernel": ("tensor", None),
    }

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        channels: int | None = None,
        conv_size: int = 4,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: number of groups of channels; the gates of a group depend on its channels only.
          channels: channels of the state; the default is ``features``.
          conv_size: kernel size of the convolution.

        Raises:
          ValueError: the number of heads does not divide the channels.
        """
        self.channels = channels = channels or features
        made = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.input = Linear(features, channels, **made)
        self.gate = Linear(features, channels, **made)
        self.conv = CausalConvolution(channels, conv_size, **made)
        self.input_gate = BlockLinear(channels, num_heads, **made)
        self.recurrence_gate = BlockLinear(channels, num_heads, **made)
        self.rates = nnx.Param(RATES(rngs.params(), (channels,), param_dtype))
        self.out_proj = Linear(channels, features, **made)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return (self.channels,)

    @property
    def convolutions(self) -> tuple[CausalConvolution, ...]:
        return (self.conv,)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> GriffinState:
        return GriffinState(
            (self.conv.init_state(batch_size, dtype=dtype),),
            empty((batch_size, self.channels), dtype),
            jnp.zeros((batch_size,), jnp.int32),
            jnp.zeros((batch_size,), bool),
        )

    def recur(self, x: jax.Array, tokens: Tokens, state: GriffinState | None) -> tuple[jax.Array, GriffinState | None]:
        (u,), seen = self.convolve([self.input(x)], tokens, state)
        wide = jnp.promote_types(u.dtype, jnp.float32)
        opened, kept = (jax.nn.sigmoid(gate(u).astype(wide)) for gate in (self.input_gate, self.recurrence_gate))
        decay = -SHARPNESS * kept * softplus(self.rates[...].astype(wide))
        # 1 - a^2 without the cancellation where a is near 1.
        written = jnp.sqrt(jnp.maximum(-jnp.expm1(2 * decay), LEAST_WRITTEN))
        first = (jnp.arange(x.shape[1]) == 0)[None]
        if state is not None:
            first = first & ~state.begun[:, None]
        starts = self.starts(tokens, state)
        first = first if starts is None else first | starts
        written = jnp.where(first[..., None], 1, written)
        h, memory = accumulate((opened * written * u).astype(u.dtype), decay, tokens, state)
        y = self.out_proj(h * jax.nn.gelu(self.gate(x)))
        if state is None:
            return y, None
        read = jnp.ones_like(state.begun) if tokens.mask is None else jnp.any(tokens.mask, axis=1)
        return y, state.after(tokens, memory=memory, convolutions=seen, begun=state.begun | read)
