"""The Toeplitz product by Fourier transforms, or by the matrix for short sequences.

The matrix is embedded in a circulant one, whose size is the smallest power of two that holds all offsets. Errors are
therefore relative to the largest of a group's coefficients, not to the one by which a token is multiplied.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.toeplitz_product import reference
from pallas_kernels.toeplitz_product.call import ToeplitzCall

# Length up to which the matrix is not slower on a CPU, for any number of groups.
SHORT = 32


def toeplitz_product(call: ToeplitzCall) -> tuple[jax.Array]:
    """The op."""
    batch, length, channels = call.x.shape
    if length <= SHORT:
        return reference.toeplitz_product(call)
    groups = call.kernel.shape[1]
    size = 1 << (2 * length - 2).bit_length()
    # The length is the last axis, where the transform needs it.
    kernel = call.kernel.T
    ahead, back = kernel[:, : kernel.shape[1] - length], kernel[:, kernel.shape[1] - length :]
    around = jnp.concatenate([back, jnp.zeros((groups, size - kernel.shape[1]), kernel.dtype), ahead], axis=1)
    x = jnp.swapaxes(call.x, 1, 2).reshape(batch, groups, -1, length)
    y = jnp.fft.irfft(jnp.fft.rfft(x, size) * jnp.fft.rfft(around)[:, None], size)[..., :length]
    return (jnp.swapaxes(y.reshape(batch, channels, length), 1, 2),)
