"""Mamba's selective scan: a diagonal linear recurrence whose step, input and output depend on the token."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from pallas_kernels import documents
from pallas_kernels.dispatch import Implementation, Later, Op
from pallas_kernels.selective_scan import distributed, reference, xla
from pallas_kernels.selective_scan.call import ScanCall
from pallas_kernels.selective_scan.cases import CASES, SHAPES
from primitives import sequence
from primitives.exponential import silu, softplus

tpu, gpu = Later(f"{__name__}.mosaic_tpu"), Later(f"{__name__}.mosaic_gpu")
_op = Op(
    "selective_scan",
    (
        Implementation(
            "state_passing", distributed.selective_scan, objection=distributed.objection, considered=sequence.is_split
        ),
        Implementation("mosaic_tpu", tpu.selective_scan, platforms=("tpu",), objection=tpu.objection, paper=(194,)),
        Implementation("mosaic_gpu", gpu.selective_scan, platforms=("gpu",), objection=gpu.objection, paper=(194,)),
        Implementation("xla", xla.selective_scan),
        Implementation("reference", reference.selective_scan),
    ),
    CASES,
    SHAPES,
)


def selective_scan(
    x: jax.Array,
    delta: jax.Array,
    A: jax.Array | None,
    B: jax.Array,
    C: jax.Array,
    *,
    D: jax.Array | None = None,
    gate: jax.Array | None = None,
    delta_bias: jax.Array | None = None,
    delta_softplus: bool = False,
    transition: Literal["exp", "implicit"] = "exp",
    initial_state: jax.Array | None = None,
    starts: jax.Array | None = None,
    return_state: bool = False,
    implementation: str | None = None,
) -> Any:
    """Selective state space model (arXiv:2312.00752, algorithm 2), with A discretized exactly and B by Euler's method,
    as in the released models.

        h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t        y_t = (C_t . h_t + D x_t) * silu(gate_t)

    The implicit transition is that of Longhorn (arXiv:2407.14207, section 3): h_t approximates the minimizer of |h -
    h_{t-1}|^2 + s_t (h . B_t - x_t)^2 by keeping the diagonal of its transition.

        s_t = sigmoid(delta_t)        e_t = s_t / (1 + s_t |B_t|^2)        h_t = (1 - e_t B_t^2) h_{t-1} + e_t x_t B_t

    There is no mask: a token whose step delta, after bias and softplus, is 0 does not change the state, which is how a
    layer skips padding; before softplus, and for the implicit transition, that is delta = -inf. The state and the sums
    are float32 (float64 for float64 inputs) for every dtype; memory is linear in length, for the gradient too.

    Args:
      x: (batch, length, channels).
      delta: (batch, length, channels), the step, >= 0 after bias and softplus; any number for the implicit transition.
      A: (channels, state_dim), real, <= 0; state_dim >= 1. None for the implicit transition.
      B: (batch, length, state_dim), or (batch, length, groups, state_dim), where groups divides channels and channel c
        reads group c // (channels // groups).
      C: as B.
      D: (channels,), the skip connection.
      gate: (batch, length, channels), before silu.
      delta_bias: (channels,), added to delta before softplus.
      delta_softplus: whether the step is softplus(delta + delta_bias).
      transition: "exp" or "implicit".
      initial_state: (batch, channels, state_dim), zeros by default.
      starts: bool (batch, length), True where a document begins: the state, including the initial one, is reset there.
        False for padding. None is no start.
      return_state: also return the state after the last token.
      implementation: the name of an implementation; None uses the best one that supports the call.

    Returns:
      (batch, length, channels) in x's dtype; with ``return_state`` also float32 (batch, channels, state_dim).

    Raises:
      ValueError: shapes that do not fit together, an unknown transition, A or softplus with the implicit one.
    """
    if transition not in ("exp", "implicit"):
        raise ValueError(f'selective_scan: transition is "exp" or "implicit"; got {transition!r}')
    implicit = transition == "implicit"
    if implicit and (A is not None or delta_softplus):
        raise ValueError("selective_scan: the implicit transition has no A and no softplus; pass A=None")
    _check(x, delta, A, B, C, D, gate, delta_bias, initial_state, implicit)
    documents.check("selective_scan", starts, *x.shape[:2])
    wide = jnp.promote_types(x.dtype, jnp.float32)
    step = delta.astype(wide)
    if delta_bias is not None:
        step = step + delta_bias.astype(wide)
    if delta_softplus:
        step = softplus(step)
    if implicit:
        strength = jax.nn.sigmoid(step)
        size = jnp.sum(jnp.square(B.astype(wide)).reshape(*x.shape[:2], -1, B.shape[-1]), axis=-1)
        step = strength / (1 + strength * jnp.repeat(size, x.shape[2] // size.shape[2], axis=2))
    out, state = _op(ScanCall(x, step, A, B, C, initial_state, starts), implementation)
    if D is not None:
        out = out + D.astype(wide) * x.astype(wide)
    if gate is not None:
        out = out * silu(gate.astype(wide))
    out = out.astype(x.dtype)
    return (out, state) if return_state else out


def _check(
    x: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, gate: Any, delta_bias: Any, initial_state: Any, implicit: bool
) -> None:
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"selective_scan: x must be (batch, length >= 1, channels); got {x.shape}")
    batch, length, channels = x.shape
    if not implicit and (A is None or A.ndim != 2 or A.shape[0] != channels or A.shape[1] < 1):
        raise ValueError(
            f"selective_scan: A must be (channels, state_dim >= 1) with {channels} channels; got "
            f"{None if A is None else A.shape}"
        )
    state_dim = B.shape[-1] if A is None else A.shape[1]
    if B.shape != C.shape or B.ndim not in (3, 4) or B.shape[:2] != (batch, length) or B.shape[-1] != state_dim:
        raise ValueError(
            f"selective_scan: B and C must both be {(batch, length, state_dim)}, or with groups before the last axis; "
            f"got {B.shape} and {C.shape}"
        )
    if B.ndim == 4 and channels % B.shape[2]:
        raise ValueError(
            f"selective_scan: the groups of B and C must divide the channels; got {B.shape[2]} and {channels}"
        )
    expected = {
        "delta": (delta, x.shape),
        "D": (D, (channels,)),
        "gate": (gate, x.shape),
        "delta_bias": (delta_bias, (channels,)),
        "initial_state": (initial_state, (batch, channels, state_dim)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"selective_scan: {name} must have shape {shape}; got {array.shape}")
