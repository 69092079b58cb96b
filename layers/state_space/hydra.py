"""Hydra: Bidirectional State Space Models Through Generalized Matrix Mixers (Hwang et al., 2024, arXiv:2407.09941),
section 4.

    z, u, BC, dt = split(W_in x);  u, BC = silu(conv(u, BC));  dt = softplus(dt + b)
    y_t = f_{t-1} + b_{t+1} + (D + W_D u_t) u_t        x' = W_out (RMSNorm(y) * silu(z))

f and b are the outputs of Mamba-2's state space (:mod:`layers.state_space.mamba2`) over u from left to right and from
right to left, each with its own B, C and dt and the same A: a quasiseparable mixing matrix, low-rank below and above
the diagonal and free on it. The convolution is centered.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import broadcast
from layers.initializers import create_initializer, ones, variance_scaling, zeros
from layers.linear import Linear
from layers.mixer import Mixer, register_mixer, without_padding
from layers.module import Module
from layers.norm import GatedRMSNorm
from layers.state_space.initialization import STEP_RANGE, StepRange, fan_in_uniform, step_bias
from layers.state_space.mamba2 import channels_and_heads
from layers.tokens import Tokens, starts
from pallas_kernels import linear_attention
from primitives.exponential import silu, softplus


class CenteredConvolution(Module):
    """Depth-wise 1-D convolution, centered on each token, with zeros beyond the ends of its document.

    Parameters ``kernel`` (kernel_size, 1, features) and ``bias`` (features,).
    """

    def __init__(
        self, features: int, kernel_size: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
    ):
        """Raises ValueError for an even ``kernel_size``, which has no center."""
        if kernel_size % 2 != 1:
            raise ValueError(f"CenteredConvolution: kernel_size must be odd; got {kernel_size}")
        init = create_initializer(variance_scaling(1 / 3, "fan_in", "uniform"))
        self.kernel = nnx.Param(init(rngs.params(), (kernel_size, 1, features), param_dtype))
        self.bias = nnx.Param(zeros(rngs.params(), (features,), param_dtype))
        self.dtype = dtype

    def __call__(self, x: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
        """Maps (batch, length, features) to the same shape."""
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel.dtype)
        x, reach, length = x.astype(dtype), len(self.kernel) // 2, x.shape[1]
        padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)))
        ids = None if segment_ids is None else jnp.pad(segment_ids, ((0, 0), (reach, reach)))[..., None]
        y = broadcast(self.bias[...], x.shape, dtype)
        for place in range(2 * reach + 1):
            seen = padded[:, place : place + length]
            if ids is not None and segment_ids is not None:
                same = jnp.equal(ids[:, place : place + length], segment_ids[..., None])
                seen = jnp.where(same, seen, 0)
            y = y + seen * broadcast(self.kernel[place, 0], x.shape, dtype)
        return y


@register_mixer("hydra")
class Hydra(Mixer):
    """The state space of Mamba-2 in both directions, with a separate diagonal.

    Parameters: ``in_proj`` (z, u, B and C from the left, B and C from the right, dt from the left and from the right),
    ``conv`` (of all but z and dt), ``dt_bias``, ``A_log``, ``D`` (heads,), ``diagonal`` (linear, W_D), ``norm``,
    ``out_proj``.
    """

    paper = (127,)
    honors = frozenset({"mask", "segment_ids"})

    def __init__(
        self,
        features: int,
        *,
        state_dim: int = 64,
        expand: int = 2,
        head_dim: int | None = None,
        groups: int = 1,
        conv_size: int = 7,
        step_range: StepRange = STEP_RANGE,
        depth: int = 1,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          state_dim, expand, head_dim, groups, step_range, depth: as in :class:`layers.Mamba2`.
          conv_size: kernel size of the centered convolution, an odd number.
          norm_epsilon: epsilon of the norm.

        Raises:
          ValueError: channels not divisible by ``head_dim``, heads not divisible by ``groups``, or an even
            ``conv_size``.
        """
        channels, self.heads = channels_and_heads(features, expand, head_dim, groups)
        self.channels, self.groups, self.state_dim = channels, groups, state_dim
        made: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        common: dict[str, Any] = {"use_bias": False, "kernel_init": fan_in_uniform(), **made}
        self.convolved = channels + 4 * groups * state_dim
        self.in_proj = Linear(features, channels + self.convolved + 2 * self.heads, **common)
        self.conv = CenteredConvolution(self.convolved, conv_size, **made)
        self.dt_bias = nnx.Param(step_bias(step_range)(rngs.params(), (self.heads,), param_dtype))
        self.A_log = nnx.Param(zeros(rngs.params(), (self.heads,), param_dtype))
        self.D = nnx.Param(ones(rngs.params(), (self.heads,), param_dtype))
        self.diagonal = Linear(channels, self.heads, **common)
        self.norm = GatedRMSNorm(channels, gated="after", epsilon=norm_epsilon, param_dtype=param_dtype, rngs=rngs)
        self.out_proj = Linear(channels, features, **(common | {"kernel_init": fan_in_uniform(depth)}))

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        mask, ids = tokens.mask, tokens.segment_ids
        x = without_padding(x, mask)
        z, u, steps = jnp.split(self.in_proj(x), [self.channels, self.channels + self.convolved], axis=-1)
        u, shared = jnp.split(silu(self.conv(u, ids)), [self.channels], axis=-1)
        wide = jnp.promote_types(u.dtype, jnp.float32)
        per_head = u.reshape(*u.shape[:2], self.heads, -1)
        # Right to left is left to right on reversed rows: both directions run in one call.
        steps, shared = (_both(*jnp.split(a, 2, axis=-1)) for a in (steps, shared))
        steps = softplus(steps.astype(wide) + self.dt_bias[...].astype(wide))
        if mask is not None:
            steps = jnp.where(_both(mask, mask)[..., None], steps, 0)  # nothing decays and nothing is written
        b, c = (a.reshape(*a.shape[:2], self.groups, -1) for a in jnp.split(shared, 2, axis=-1))
        begins = None
        if ids is not None:
            begins = starts(_both(ids, ids))
            begins = begins if mask is None else begins & _both(mask, mask)
        y = linear_attention(
            c,
            b,
            (steps[..., None] * _both(per_head, per_head)).astype(u.dtype),
            decay=-jnp.exp(self.A_log[...].astype(wide)) * steps,
            scale=1.0,
            starts=begins,
        )
        # Shift by one token in the order of each direction, with zeros for the first token of a document.
        y = jnp.concatenate([jnp.zeros_like(y[:, :1]), y[:, :-1]], axis=1)
        y = y if begins is None else jnp.where(begins[..., None, None], 0, y)
        left, right = jnp.split(y, 2)
        own = broadcast(self.D[...], (*u.shape[:2], self.heads), u.dtype) + self.diagonal(u)
        y = left + right[:, ::-1] + own[..., None] * per_head
        return self.out_proj(self.norm(y.reshape(z.shape), z))


def _both(left: jax.Array, right: jax.Array) -> jax.Array:
    """``left``, and ``right`` reversed along the length, concatenated: (2 * batch, length, ...)."""
    return jnp.concatenate([left, right[:, ::-1]])
