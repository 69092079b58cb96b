"""Mamba-2: Transformers are SSMs (Dao and Gu, 2024, arXiv:2405.21060), section 7 and figure 6.

    z, u, B, C, dt = split(W_in x);  u, B, C = silu(conv(u, B, C));  dt = softplus(dt + b)        one dt per head
    S_t = exp(A dt_t) S_{t-1} + B_t (dt_t u_t)^T        y = W_out RMSNorm((C_t S_t + D u_t) * silu(z))

A is one number per head. By state space duality this is linear attention with queries C, keys B, values dt u and log
decay A dt, which is computed chunk by chunk with matrix products.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import broadcast
from layers.convolution import CausalConvolution
from layers.initializers import SharedColumns, ones
from layers.linear import Linear
from layers.mixer import register_mixer
from layers.norm import GatedRMSNorm
from layers.recurrent import Recurrent, empty
from layers.state_space.initialization import (
    A_LOG,
    MIMETIC_A_LOG,
    MIMETIC_STEP_BIAS,
    STEP_RANGE,
    Initialization,
    StepRange,
    check_initialization,
    fan_in_uniform,
    identity_kernel,
    step_bias,
)
from layers.state_space.mamba import SelectiveState
from layers.tokens import Tokens
from pallas_kernels import linear_attention
from primitives.exponential import silu, softplus


def channels_and_heads(features: int, expand: int, head_dim: int | None, groups: int) -> tuple[int, int]:
    """The numbers of channels and heads; ``head_dim`` defaults to the greatest divisor of the channels up to 64.

    Raises:
      ValueError: channels not divisible by ``head_dim``, or heads not divisible by ``groups``.
    """
    channels = expand * features
    head_dim = head_dim or next(size for size in range(64, 0, -1) if channels % size == 0)
    if channels % head_dim or channels // head_dim % groups:
        raise ValueError(
            f"{expand} * {features} channels can't be split into heads of {head_dim} in {groups} equal groups: "
            f"choose others"
        )
    return channels, channels // head_dim


@register_mixer("mamba2")
class Mamba2(Recurrent):
    """The selective state space model with one decay per head, its convolution, gate and norm.

    Parameters: ``in_proj`` (z, u, B, C and dt in one product), ``conv`` (of u, B and C), ``dt_bias``, ``A_log``, ``D``
    (heads,), ``norm``, ``out_proj``.
    """

    def __init__(
        self,
        features: int,
        *,
        state_dim: int = 128,
        expand: int = 2,
        head_dim: int | None = None,
        groups: int = 1,
        conv_size: int = 4,
        initialization: Initialization = "standard",
        step_range: StepRange = STEP_RANGE,
        depth: int = 1,
        use_bias: bool = False,
        conv_bias: bool = True,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          state_dim: number of rows of a head's state (N), the size of B and C.
          expand: channels / features.
          head_dim: channels of a head (P); default the greatest divisor of the channels up to 64.
          groups: number of sets of B and C; each is shared by channels / head_dim / groups heads, and the norm is over
            each group's channels.
          conv_size: kernel size of the convolution.
          initialization: "mimetic" starts as a linear attention without decay
            (:mod:`layers.state_space.initialization`).
          step_range: initial steps are log-uniform in this range, unless mimetic; a state decays over about 1 / step
            tokens.
          depth: number of blocks of the model; the initial output projection is divided by its square root.
          use_bias, conv_bias: biases of the input and output projections, and of the convolution.
          norm_epsilon: epsilon of the norm.

        Raises:
          ValueError: an unknown initialization, channels not divisible by ``head_dim``, or heads not divisible by
            ``groups``.
        """
        check_initialization(initialization)
        channels, self.heads = channels_and_heads(features, expand, head_dim, groups)
        self.channels, self.groups, self.state_dim = channels, groups, state_dim
        common = {"use_bias": use_bias, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        convolved = channels + 2 * groups * state_dim
        mimetic = initialization == "mimetic"
        before, shared = 2 * channels, groups * state_dim
        same = SharedColumns(
            fan_in_uniform(), same=(before, before + shared, shared), zeros=(before + 2 * shared, self.heads)
        )
        self.in_proj = Linear(
            features, channels + convolved + self.heads, kernel_init=same if mimetic else fan_in_uniform(), **common
        )
        taps = {"kernel_init": identity_kernel(conv_size)} if mimetic else {}
        self.conv = CausalConvolution(
            convolved, conv_size, use_bias=conv_bias, dtype=dtype, param_dtype=param_dtype, rngs=rngs, **taps
        )
        self.dt_bias = nnx.Param(
            (MIMETIC_STEP_BIAS if mimetic else step_bias(step_range))(rngs.params(), (self.heads,), param_dtype)
        )
        self.A_log = nnx.Param((MIMETIC_A_LOG if mimetic else A_LOG)(rngs.params(), (self.heads,), param_dtype))
        self.D = nnx.Param(ones(rngs.params(), (self.heads,), param_dtype))
        self.norm = GatedRMSNorm(channels, groups=groups, epsilon=norm_epsilon, param_dtype=param_dtype, rngs=rngs)
        self.out_proj = Linear(channels, features, kernel_init=fan_in_uniform(depth), **common)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> SelectiveState:
        hidden = (batch_size, self.heads, self.state_dim, self.channels // self.heads)
        return SelectiveState(self.conv.init_state(batch_size, dtype=dtype), empty(hidden, dtype))

    def recur(
        self, x: jax.Array, tokens: Tokens, state: SelectiveState | None
    ) -> tuple[jax.Array, SelectiveState | None]:
        z, u, steps = jnp.split(self.in_proj(x), [self.channels, self.channels + self.conv.features], axis=-1)
        u, seen = self.conv.recur(u, tokens, None if state is None else state.convolution)
        shared = self.groups * self.state_dim
        u, b, c = jnp.split(silu(u), [self.channels, self.channels + shared], axis=-1)
        u = u.reshape(*x.shape[:2], self.heads, -1)
        b, c = (a.reshape(*x.shape[:2], self.groups, self.state_dim) for a in (b, c))
        wide = jnp.promote_types(u.dtype, jnp.float32)
        steps = softplus(steps.astype(wide) + self.dt_bias[...].astype(wide))
        if tokens.mask is not None:
            steps = jnp.where(tokens.mask[..., None], steps, 0)  # no decay and nothing written: the state is unchanged
        y, hidden = linear_attention(
            c,
            b,
            (steps[..., None] * u).astype(u.dtype),
            decay=-jnp.exp(self.A_log[...].astype(wide)) * steps,
            scale=1.0,
            initial_state=None if state is None else state.hidden,
            starts=self.starts(tokens, state),
            return_state=True,
        )
        y = y + broadcast(self.D[...][:, None], u.shape, u.dtype) * u
        return self.out_proj(self.norm(y.reshape(z.shape), z)), None if seen is None else SelectiveState(seen, hidden)
