"""The elementwise linear recurrence along a sequence: a decaying sum for each channel."""

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
    """Elementwise linear recurrence, as in HGRN (arXiv:2311.04823) and Griffin (arXiv:2402.19427), or cumulative sum.

        h_t = exp(decay_t) h_{t-1} + x_t

    There is no mask: a token with x = 0 and decay = 0 does not change the state. The state is float32 (float64 for
    float64 inputs) for every dtype; memory is linear in length, for the gradient too, which stores only the arguments
    and the states. Gradients of any order are scans of the same kind.

    Args:
      x: (batch, length, channels).
      decay: (batch, length, channels), the logarithm of the factor; minus infinity is allowed; 0 by default, a
        cumulative sum. With values above 0 states grow and may overflow.
      initial_state: (batch, channels), zeros by default.
      reverse: run from the last token to the first: h_t = exp(decay_t) h_{t+1} + x_t. The initial state is then that
        after the last token, and the returned state that of the first.
      starts: bool (batch, length), True where a document begins: the state, including the initial one, is reset there.
        In reverse, tokens before a start do not read those from it on, and the returned state is 0 where the first
        token starts a document. None is no start.
      return_state: also return the state after the last token processed.
      implementation: the name of an implementation; None uses the best one that supports the call.

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
        # In reverse a document starts at its last token, the one before the next document's first.
        ends = None if starts is None else jnp.pad(starts[:, 1:], ((0, 0), (0, 1)))
        turned = {"x": x, "decay": decay, "starts": ends}
        call = call.replace(**{name: a if a is None else jnp.flip(a, 1) for name, a in turned.items()})
    out, state = _op(call, implementation)
    if reverse:
        out = jnp.flip(out, 1)
        state = state if starts is None else jnp.where(starts[:, :1], 0, state)
    out = out.astype(x.dtype)
    return (out, state) if return_state else out
