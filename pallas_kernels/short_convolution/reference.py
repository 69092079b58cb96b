"""The short convolution as its sum over taps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.short_convolution.call import ShortCall


def short_convolution(call: ShortCall) -> tuple[jax.Array]:
    """The op."""
    wide = jnp.promote_types(call.x.dtype, jnp.float32)
    batch, length, channels = call.x.shape
    before, after = (
        jnp.zeros((batch, count, channels)) if x is None else x
        for x, count in zip((call.before, call.after), call.reach)
    )
    seen = jnp.concatenate([before.astype(wide), call.x.astype(wide), after.astype(wide)], axis=1)
    places = jnp.arange(length)[:, None] + jnp.arange(call.kernel.shape[-2])
    windows = seen[:, places]
    if call.starts is not None:
        number = jnp.cumsum(call.starts, axis=1)
        others = jnp.pad(jnp.pad(number, ((0, 0), (before.shape[1], 0))), ((0, 0), (0, after.shape[1])), mode="edge")
        windows = jnp.where((others[:, places] == number[:, :, None])[..., None], windows, 0)
    kernel = jnp.broadcast_to(call.kernel.astype(wide), (batch, *call.kernel.shape[-2:]))
    return (jnp.einsum("btuc,buc->btc", windows, kernel, precision="highest").astype(call.x.dtype),)
