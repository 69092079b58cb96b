"""The product with a Toeplitz matrix along a sequence: a convolution as long as the sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import Implementation, Op
from pallas_kernels.toeplitz_product import reference, xla
from pallas_kernels.toeplitz_product.call import ToeplitzCall
from pallas_kernels.toeplitz_product.cases import CASES

_op = Op(
    "toeplitz_product",
    (Implementation("xla", xla.toeplitz_product), Implementation("reference", reference.toeplitz_product)),
    CASES,
)


def toeplitz_product(
    x: jax.Array, kernel: jax.Array, *, causal: bool = True, implementation: str | None = None
) -> jax.Array:
    """Product with a matrix whose entries depend only on the offset between two tokens, by Fourier transforms.

        y[t, c] = sum_s kernel[t - s, c] x[s, c]

    A token with x = 0 has no effect. Sums are float32 (float64 for float64 arrays); the transforms' errors are relative
    to the largest coefficient of a channel. The op takes O(length log length) operations, and can be differentiated any
    number of times, in forward and reverse mode, and mapped.

    Args:
      x: (batch, length, channels).
      kernel: if causal, (length, groups), for the offsets 0, 1, ...; else (2 length - 1, groups), for the offsets 1 -
        length, ..., length - 1. ``groups`` divides channels, and channel c uses group c // (channels // groups).
      causal: whether a token reads only tokens up to itself.
      implementation: the name of an implementation; None uses the best one that supports the call.

    Returns:
      (batch, length, channels), in the promoted dtype of x and kernel.

    Raises:
      ValueError: shapes that do not fit together.
    """
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"toeplitz_product: x must be (batch, length >= 1, channels); got {x.shape}")
    _, length, channels = x.shape
    offsets = length if causal else 2 * length - 1
    if kernel.ndim != 2 or kernel.shape[0] != offsets or kernel.shape[1] < 1 or channels % kernel.shape[1]:
        raise ValueError(
            f"toeplitz_product: kernel must be ({offsets}, groups), of groups that divide the {channels} channels; got "
            f"{kernel.shape}"
        )
    dtype = jnp.promote_types(x.dtype, kernel.dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    (y,) = _op(ToeplitzCall(x.astype(wide), kernel.astype(wide)), implementation)
    return y.astype(dtype)
