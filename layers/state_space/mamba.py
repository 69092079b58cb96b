"""Mamba: Linear-Time Sequence Modeling with Selective State Spaces (Gu and Dao, 2023, arXiv:2312.00752), sections 3.4
and 3.5.

u, z = split(W_in x);  u = silu(conv(u));  dt, B, C = split(W_x u)
h_t = exp(softplus(W_dt dt_t + b_dt) A) h_{t-1} + softplus(...) u_t B_t        y = W_out ((C h + D u) * silu(z))

Without the state space y = W_out (D u * silu(z)), the gated convolution that MambaOut (Yu and Wang, arXiv:2405.07992)
compares with. Jamba (Lieber et al., 2024, arXiv:2403.19887) normalizes dt, B and C: ``inner_norm``.

Longhorn: State Space Models are Amortized Online Learners (Liu et al., 2024, arXiv:2407.14207), section 3: its state
solves an online regression from B to u; the exact transition is approximated by its diagonal.

s = sigmoid(W_dt dt_t + b_dt);  e = s / (1 + s |B_t|^2)        h_t = (1 - e B_t^2) h_{t-1} + e u_t B_t
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from layers import portable
from layers.convolution import CausalConvolution, ConvolutionState
from layers.initializers import SharedColumns, Uniform, constant, ones, zeros
from layers.linear import Linear
from layers.mixer import register_mixer
from layers.module import LayerOptions, parameter
from layers.norm import RMSNorm
from layers.recurrent import Recurrent, empty
from layers.state_space.initialization import (
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
from layers.tokens import Tokens
from pallas_kernels import selective_scan
from primitives.exponential import silu


@struct.dataclass
class SelectiveState:
    """The state of a selective state space.

    Attributes:
      convolution: the last inputs of the convolution, and their document.
      hidden: the hidden state: (batch, channels, state_dim) in :class:`Mamba`, (batch, heads, state_dim, head_dim) in
        :class:`Mamba2`.
    """

    convolution: ConvolutionState
    hidden: jax.Array

    @property
    def segment(self) -> jax.Array:
        """(batch,) int32, the id of the current document."""
        return self.convolution.segment


class SelectiveOptions(LayerOptions, total=False):
    """Options of :class:`Mamba` that all its subclasses take and pass on."""

    state_dim: int
    expand: int
    conv_size: int
    step_rank: int | None
    depth: int
    use_bias: bool
    conv_bias: bool


class MambaOptions(SelectiveOptions, total=False):
    """Options of subclasses that use the transition of Mamba."""

    initialization: Initialization
    step_range: StepRange


@register_mixer("mamba")
class Mamba(Recurrent):
    """The selective state space model, with its convolution and gate.

    Parameters: ``in_proj`` (u and z in one product), ``conv``, ``x_proj`` (dt, B and C), ``dt_proj``, ``dt_bias``,
    ``A_log`` (channels, state_dim), ``D`` (channels,), ``out_proj``; with ``state_dim=0`` only ``in_proj``, ``conv``,
    ``D`` and ``out_proj``; with ``inner_norm`` also ``step_norm``, ``b_norm`` and ``c_norm``.
    """

    paper = (194,)
    undecayed: ClassVar[tuple[str, ...]] = ("A_log",)
    transition: ClassVar[Literal["exp", "implicit"]] = "exp"

    def __init__(
        self,
        features: int,
        *,
        state_dim: int = 16,
        expand: int = 2,
        conv_size: int = 4,
        step_rank: int | None = None,
        initialization: Initialization = "standard",
        step_range: StepRange = STEP_RANGE,
        depth: int = 1,
        use_bias: bool = False,
        conv_bias: bool = True,
        inner_norm: bool = False,
        norm_epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          state_dim: state size of each channel (N); 0 leaves the state space out.
          expand: channels / features.
          conv_size: kernel size of the convolution.
          step_rank: rank of the map from a token to its step sizes (R); default features / 16, rounded up.
          initialization: "mimetic" starts as a linear attention without decay
            (:mod:`layers.state_space.initialization`).
          step_range: initial steps are log-uniform in this range, unless mimetic; a state decays over about 1 / step
            tokens.
          depth: number of blocks of the model; the initial output projection is divided by its square root.
          use_bias, conv_bias: biases of the input and output projections, and of the convolution.
          inner_norm, norm_epsilon: RMS norms of dt, B and C, and their epsilon.

        Raises:
          ValueError: an unknown initialization.
        """
        check_initialization(initialization)
        channels = expand * features
        step_rank = step_rank or -(-features // 16)
        common = {"kernel_init": fan_in_uniform(), "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        mimetic = initialization == "mimetic"
        self.in_proj = Linear(features, 2 * channels, use_bias=use_bias, **common)
        taps = {"kernel_init": identity_kernel(conv_size)} if mimetic else {}
        self.conv = CausalConvolution(
            channels, conv_size, use_bias=conv_bias, dtype=dtype, param_dtype=param_dtype, rngs=rngs, **taps
        )
        keys = (
            {"kernel_init": SharedColumns(fan_in_uniform(), same=(step_rank, step_rank + state_dim, state_dim))}
            if mimetic
            else {}
        )
        if state_dim:
            self.x_proj = Linear(channels, step_rank + 2 * state_dim, use_bias=False, **{**common, **keys})
            self.dt_proj = Linear(
                step_rank, channels, use_bias=False, **{**common, **({"kernel_init": zeros} if mimetic else {})}
            )
            self.dt_bias = nnx.Param(
                (MIMETIC_STEP_BIAS if mimetic else step_bias(step_range))(rngs.params(), (channels,), param_dtype)
            )
        if state_dim and self.transition == "exp":
            rates = constant(tuple(portable.log(np.arange(1, state_dim + 1)).tolist()))
            logs = MIMETIC_A_LOG if mimetic else rates
            self.A_log = nnx.Param(logs(rngs.params(), (channels, state_dim), param_dtype))
        self.D = nnx.Param(ones(rngs.params(), (channels,), param_dtype))
        self.out_proj = Linear(
            channels, features, use_bias=use_bias, **{**common, "kernel_init": fan_in_uniform(depth)}
        )
        norm: dict[str, Any] = {"epsilon": norm_epsilon, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.step_norm, self.b_norm, self.c_norm = (
            RMSNorm(size, **norm) if inner_norm and state_dim else None for size in (step_rank, state_dim, state_dim)
        )
        self.channels, self.state_dim, self.step_rank = channels, state_dim, step_rank

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> SelectiveState:
        return SelectiveState(
            self.conv.init_state(batch_size, dtype=dtype), empty((batch_size, self.channels, self.state_dim), dtype)
        )

    def recur(
        self, x: jax.Array, tokens: Tokens, state: SelectiveState | None
    ) -> tuple[jax.Array, SelectiveState | None]:
        u, z = jnp.split(self.in_proj(x), 2, axis=-1)
        u, seen = self.conv.recur(u, tokens, None if state is None else state.convolution)
        u = silu(u)
        if not self.state_dim:
            y = self.out_proj((u * self.D[...] * silu(z)).astype(u.dtype))
            return y, None if seen is None else SelectiveState(seen, (state or self.init_state(x.shape[0])).hidden)
        steps, b, c = jnp.split(self.x_proj(u), [self.step_rank, self.step_rank + self.state_dim], axis=-1)
        if self.step_norm is not None and self.b_norm is not None and self.c_norm is not None:
            steps, b, c = self.step_norm(steps), self.b_norm(b), self.c_norm(c)
        steps = self.dt_proj(steps)
        if tokens.mask is not None:
            # A step of 0 after softplus or sigmoid: the state is unchanged.
            steps = jnp.where(tokens.mask[..., None], steps, -jnp.inf)
        wide = jnp.promote_types(u.dtype, jnp.float32)
        y, hidden = selective_scan(
            u,
            steps,
            -jnp.exp(self.A_log[...].astype(wide)) if self.transition == "exp" else None,
            b,
            c,
            D=self.D[...],
            gate=z,
            delta_bias=self.dt_bias[...],
            delta_softplus=self.transition == "exp",
            transition=self.transition,
            initial_state=None if state is None else state.hidden,
            starts=self.starts(tokens, state),
            return_state=True,
        )
        return self.out_proj(y), None if seen is None else SelectiveState(seen, hidden)


@register_mixer("longhorn")
class Longhorn(Mamba):
    """A state space model with the update of an online regression, and the convolution and gate of Mamba.

    Parameters: those of Mamba without ``A_log``, as the decay follows from what a token writes.
    """

    paper = (125,)
    undecayed = ()
    transition = "implicit"

    def __init__(self, features: int, **options: Unpack[SelectiveOptions]):
        """Args: as in :class:`Mamba`."""
        super().__init__(features, **options)
        reach = self.step_rank**-0.5
        self.dt_bias = parameter(Uniform(-reach, reach), (self.channels,), options)
