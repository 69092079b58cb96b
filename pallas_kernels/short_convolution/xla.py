"""The short convolution as a depth-wise convolution of a grid of one row."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.depthwise_convolution import xla
from pallas_kernels.depthwise_convolution.call import DepthwiseCall
from pallas_kernels.short_convolution.call import ShortCall


def short_convolution(call: ShortCall, form: str | None = None) -> tuple[jax.Array]:
    """The op; ``form`` names one of :data:`pallas_kernels.depthwise_convolution.forms.FORMS`, None chooses."""
    known = [x for x in (call.before, call.x, call.after) if x is not None]
    x = jnp.concatenate(known, axis=1) if len(known) > 1 else call.x
    back, ahead = (0 if x is not None else count for x, count in zip((call.before, call.after), call.reach))
    grid = DepthwiseCall(x[:, None], jnp.expand_dims(call.kernel, -3), (1, 1), (1, 1), ((0, 0), (back, ahead)))
    (y,) = xla.depthwise_convolution(grid, form)
    return (y[:, 0],)
