"""The elementwise linear recurrence along a sequence: each channel summed up with its own decay of each token."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import documents
from pallas_kernels.dispatch import Implementation, Op
from pallas_kernels.linear_scan import distributed, reference, xla
from pallas_kernels.linear_scan.call import LinearScanCall
from pallas_kernels.linear_scan.cases import CASES
from primitives import sequence

_op = Op(
    "linear_scan",
    (
        Implementation(
            "state_passing", distributed.linear_scan, objection=distributed.objection, considered=sequence.is_split
        ),
        Implementation("xla", xla.linear_scan),
        Implementation("reference", reference.linear_scan),
    ),
    CASES,
)


def linear_scan(
    x: jax.Array,
    decay: jax.Array | None = None,
    *,
    initial_state: jax.Array | None = None,
    reverse: bool = False,
    starts: jax.Array | None = None,
    return_state: bool = False,
    implementation: str | None = None,
) -> Any:
    """Elementwise linear recurrence, as in HGRN (arXiv:2311.04823) and Griffin (arXiv:2402.19427), and running sums.

        h_t = exp(decay_t) h_{t-1} + x_t

    There is no mask: a token with x = 0 and decay = 0 changes no state. The state is float32 (float64 for float64
    inputs) whatever the dtype; memory is linear in length, for the gradient too: beyond its arguments it keeps the
    states alone, which are what is returned. Gradients, theirs too, are scans of the same kind.

    Args:
      x: (batch, length, channels).
      decay: (batch, length, channels), the logarithm of the factor, minus infinity allowed; 0 by default: a running
        sum. Above 0 states grow and may overflow.
      initial_state: (batch, channels), zeros by default.
      reverse: from the last token to the first: h_t = exp(decay_t) h_{t+1} + x_t. The initial state is then of after
        the last token, and the state returned of the first.
      starts: bool (batch, length), True where a document begins: it and what follows see nothing of before, the initial
        state included; in reverse, what is before sees nothing of it, and the state returned is 0 where the first token
        starts one. None: nowhere.
      return_state: also return the state after the last token that is read.
      implementation: the name of one, or None for the best that serves the call.

    Returns:
      h (batch, length, channels) in x's dtype; with ``return_state`` also float32 (batch, channels).

    Raises:
      ValueError: shapes that do not fit together.
    """
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"linear_scan: x must be (batch, length >= 1, channels); got {x.shape}")
    expected = {"decay": (decay, x.shape), "initial_state": (initial_state, (x.shape[0], x.shape[2]))}
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"linear_scan: {name} must have shape {shape}; got {array.shape}")
    documents.check("linear_scan", starts, *x.shape[:2])
    call = LinearScanCall(x, decay, initial_state, starts)
    if reverse:
        # Backwards a document begins with its last token, which is the one before another's first.
        ends = None if starts is None else jnp.pad(starts[:, 1:], ((0, 0), (0, 1)))
        turned = {"x": x, "decay": decay, "starts": ends}
        call = call.replace(**{name: a if a is None else jnp.flip(a, 1) for name, a in turned.items()})
    out, state = _op(call, implementation)
    if reverse:
        out = jnp.flip(out, 1)
        state = state if starts is None else jnp.where(starts[:, :1], 0, state)
    out = out.astype(x.dtype)
    return (out, state) if return_state else out
