"""The short convolution as a depth-wise convolution of a grid with one row; for packed documents as a sum over taps."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.depthwise_convolution import xla
from pallas_kernels.depthwise_convolution.call import DepthwiseCall
from pallas_kernels.short_convolution.call import ShortCall


def short_convolution(call: ShortCall, form: str | None = None) -> tuple[jax.Array]:
    """The op; ``form`` names one of :data:`pallas_kernels.depthwise_convolution.forms.FORMS`, None chooses. Packed
    documents have only one form.
    """
    if call.starts is not None:
        return (_packed(call),)
    known = [x for x in (call.before, call.x, call.after) if x is not None]
    x = jnp.concatenate(known, axis=1) if len(known) > 1 else call.x
    back, ahead = (0 if x is not None else count for x, count in zip((call.before, call.after), call.reach))
    grid = DepthwiseCall(x[:, None], jnp.expand_dims(call.kernel, -3), (1, 1), (1, 1), ((0, 0), (back, ahead)))
    (y,) = xla.depthwise_convolution(grid, form)
    return (y[:, 0],)


def _packed(call: ShortCall) -> jax.Array:
    """Each tap is a multiply-add of a shifted view, with zeros where that belongs to another document."""
    length, reach = call.x.shape[1], call.reach
    assert call.starts is not None
    number = jnp.cumsum(call.starts, axis=1, dtype=jnp.int32)
    others = jnp.pad(number, ((0, 0), (reach[0], 0)))
    others = jnp.pad(others, ((0, 0), (0, reach[1])), mode="edge")

    # The gradient stores the arrays themselves, not a masked copy for each tap.
    @jax.checkpoint
    def convolve(x: jax.Array, before: jax.Array | None, after: jax.Array | None, kernel: jax.Array) -> jax.Array:
        wide: Any = jnp.promote_types(x.dtype, jnp.float32)
        nothing = [jnp.zeros((x.shape[0], count, x.shape[2]), x.dtype) for count in reach]
        first, last = (none if known is None else known for known, none in zip((before, after), nothing))
        seen, kernel = jnp.concatenate([first, x, last], axis=1), kernel.astype(wide)

        def tap(u: int) -> jax.Array:
            same = others[:, u : u + length] == number
            return jnp.where(same[..., None], seen[:, u : u + length].astype(wide), 0) * kernel[..., u, None, :]

        return functools.reduce(operator.add, map(tap, range(kernel.shape[-2]))).astype(x.dtype)

    return convolve(call.x, call.before, call.after, call.kernel)
