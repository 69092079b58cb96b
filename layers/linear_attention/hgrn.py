"""HGRN: Hierarchically Gated Recurrent Neural Network for Sequence Modeling (Qin et al., 2023, arXiv:2311.04823),
section 3, in the real-valued form of flash-linear-attention; the paper's states are complex and also rotate, by an
angle per channel.

f = b + (1 - b) sigmoid(W_f x)        h_t = f_t h_{t-1} + (1 - f_t) silu(W_i x_t)
y = W_o (RMSNorm(h) * silu(W_g x))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from layers.convolution import CausalConvolution
from layers.linear import Linear
from layers.mixer import Mixer, register_mixer
from layers.norm import GatedRMSNorm
from layers.recurrent import Recurrent, RecurrentState, accumulate
from layers.state_space.initialization import fan_in_uniform
from layers.tokens import Tokens
from primitives.exponential import silu, softplus


def forget_gate(logits: jax.Array, bound: Any) -> tuple[jax.Array, jax.Array]:
    """The gate f = b + (1 - b) sigmoid(logits): (log f, 1 - f), at least float32, both accurate for f near 0 and 1.

    Args:
      logits: (..., channels).
      bound: b, a number in [0, 1) or an array that broadcasts against ``logits``.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    decay = -softplus(-logits)
    if isinstance(bound, jax.Array) or bound:
        # log 0 is -inf, and its gradient must not be computed.
        log_bound = jnp.where(bound > 0, jnp.log(jnp.where(bound > 0, bound, 1)), -jnp.inf)
        decay = jnp.logaddexp(log_bound, jnp.log1p(-bound) + decay)
    return decay, (1 - bound) * jax.nn.sigmoid(-logits)


def check_lower_bound(mixer: str, bound: float | None) -> None:
    """Checks that a bound, if given, is in [0, 1).

    Raises:
      ValueError: it is not.
    """
    if bound is not None and not 0 <= bound < 1:
        raise ValueError(f"{mixer}: lower_bound must be at least 0 and below 1; got {bound}")


@register_mixer("hgrn")
class HGRN(Recurrent):
    """A gated recurrence with one state per channel, a moving average of inputs, whose forget gate has a lower bound.

    Parameters: ``input``, ``forget``, ``gate``, ``out`` (linear), ``norm`` over all channels; ``input_conv``,
    ``forget_conv`` with convolutions.
    """

    paper = (185,)
    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        **Mixer.sharding,
        "input.kernel": (None, "tensor"),
        "forget.kernel": (None, "tensor"),
    }

    def __init__(
        self,
        features: int,
        *,
        expand: int = 1,
        lower_bound: float | None = 0.0,
        conv_size: int | None = None,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          expand: channels / features.
          lower_bound: b, the lower bound of the forget gate. Models increase it from layer to layer with a parameter of
            their own: if None, each call takes b, float32 (channels,), as an argument.
          conv_size: kernel size of the convolutions of inputs and forget gates; None for no convolutions.
          norm_epsilon: epsilon of the output norm.

        Raises:
          ValueError: a bound outside [0, 1).
        """
        check_lower_bound("HGRN", lower_bound)
        self.lower_bound, self.shares, self.channels = lower_bound, lower_bound is None, expand * features
        made = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        common = {"use_bias": False, "kernel_init": fan_in_uniform(), **made}
        self.input = Linear(features, self.channels, **common)
        self.forget = Linear(features, self.channels, **common)
        self.gate = Linear(features, self.channels, **common)
        self.input_conv = CausalConvolution(self.channels, conv_size, use_bias=False, **made) if conv_size else None
        self.forget_conv = CausalConvolution(self.channels, conv_size, use_bias=False, **made) if conv_size else None
        self.norm = GatedRMSNorm(self.channels, gated="after", epsilon=norm_epsilon, param_dtype=param_dtype, rngs=rngs)
        self.out = Linear(self.channels, features, **common)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return (self.channels,)

    @property
    def convolutions(self) -> tuple[CausalConvolution, ...]:
        return tuple(conv for conv in (self.input_conv, self.forget_conv) if conv is not None)

    def recur(
        self, x: jax.Array, tokens: Tokens, state: RecurrentState | None, /, *own: jax.Array
    ) -> tuple[jax.Array, RecurrentState | None]:
        (read, forget), seen = self.convolve([self.input(x), self.forget(x)], tokens, state)
        decay, written = forget_gate(forget, own[0] if self.shares else self.lower_bound)
        y, memory = accumulate((silu(read) * written).astype(read.dtype), decay, tokens, state)
        return self.out(self.norm(y, self.gate(x))), state and state.after(tokens, memory=memory, convolutions=seen)
