"""The short convolution along a sequence: each channel has its own few taps; causal, with a state, or centered."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import documents
from pallas_kernels.depthwise_convolution import add_bias
from pallas_kernels.dispatch import Implementation, Op
from pallas_kernels.documents import Documents
from pallas_kernels.short_convolution import distributed, reference, xla
from pallas_kernels.short_convolution.call import ShortCall
from pallas_kernels.short_convolution.cases import CASES
from primitives import sequence

_op = Op(
    "short_convolution",
    (
        Implementation(
            "neighbors", distributed.short_convolution, objection=distributed.objection, considered=sequence.is_split
        ),
        Implementation("xla", xla.short_convolution),
        Implementation("reference", reference.short_convolution),
    ),
    CASES,
)


def short_convolution(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    starts: jax.Array | None = None,
    state: jax.Array | None = None,
    causal: bool = True,
    return_state: bool = False,
    implementation: str | None = None,
) -> Any:
    """Depth-wise convolution along a sequence: each channel has its own kernel.

        y[t, c] = bias[c] + sum_u kernel[u, 0, c] x[t + u - back, c]

    ``back`` is size - 1 if causal and (size - 1) // 2 if centered; x is 0 before its start (with a state, before the
    state's), after its end and where it is masked. Sums are float32 (float64 for float64 arrays), also in the
    gradients. The op can be differentiated any number of times, in forward and reverse mode, and mapped.

    Args:
      x: (batch, length, channels).
      kernel: (size, 1, channels), the layout of a grouped ``nnx.Conv``; or (batch, size, 1, channels), one for each
        row.
      bias: (channels,).
      mask: bool (batch, length), True = real; padding comes last. Masked positions may hold anything, including NaN;
        their own outputs have no meaning.
      starts: bool (batch, length), True where a document begins: tokens of different documents don't interact, and only
        those before the first start read the state. False where masked. None is no start.
      state: (batch, size - 1, channels), the tokens before x; zeros by default. Requires ``causal``.
      causal: whether a token reads only tokens up to itself; otherwise the kernel is centered.
      return_state: also return the state after each row's last real token, with zeros before its document's start.
        Requires ``causal``.
      implementation: the name of an implementation; None uses the best one that supports the call.

    Returns:
      (batch, length, channels), in the promoted dtype of x and kernel; with ``return_state`` also the state, in the
      dtype of ``state`` if given, else x's.

    Raises:
      ValueError: shapes that do not fit together; a state for a centered convolution.
    """
    _check(x, kernel, bias, mask, starts, state, causal, return_state)
    size = kernel.shape[-3]
    if mask is not None:
        x = jnp.where(mask[..., None], x, 0)
    dtype = jnp.promote_types(x.dtype, kernel.dtype)
    back = size - 1 if causal else (size - 1) // 2
    before = None if state is None or size == 1 else state.astype(dtype)
    call = ShortCall(x.astype(dtype), kernel[..., 0, :].astype(dtype), before, None, starts, (back, size - 1 - back))
    (y,) = _op(call, implementation)
    y = y if bias is None else add_bias(y, bias)
    if not return_state:
        return y
    start = jnp.zeros((x.shape[0], size - 1, x.shape[2]), x.dtype) if state is None else state
    packed = Documents.of(starts)
    seen = jnp.concatenate([packed.carried(start), packed.last(x, 1).astype(start.dtype)], axis=1)
    if mask is None:
        return y, seen[:, x.shape[1] :]
    rows = jnp.sum(mask, axis=1)[:, None] + jnp.arange(size - 1)
    return y, jnp.take_along_axis(seen, rows[..., None], axis=1)


def _check(
    x: Any, kernel: Any, bias: Any, mask: Any, starts: Any, state: Any, causal: bool, return_state: bool
) -> None:
    if x.ndim != 3:
        raise ValueError(f"short_convolution: x must be (batch, length, channels); got {x.shape}")
    batch, length, channels = x.shape
    size = kernel.shape[-3] if kernel.ndim in (3, 4) else 0
    if size < 1 or kernel.shape not in ((size, 1, channels), (batch, size, 1, channels)):
        raise ValueError(
            f"short_convolution: kernel must be (size >= 1, 1, {channels}), or ({batch}, size, 1, {channels}) with one "
            f"for each row; got {kernel.shape}"
        )
    documents.check("short_convolution", starts, batch, length)
    if not causal and (state is not None or return_state):
        raise ValueError(
            "short_convolution: a centered convolution sees tokens that are still to come and has no state; use "
            "causal=True"
        )
    expected = {
        "bias": (bias, (channels,)),
        "mask": (mask, (batch, length)),
        "state": (state, (batch, size - 1, channels)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"short_convolution: {name} must have shape {shape}; got {array.shape}")
