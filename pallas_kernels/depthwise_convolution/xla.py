"""The depth-wise convolution in JAX's own operations, in a form chosen by platform, size and number of taps."""

from __future__ import annotations

import math

import jax

from pallas_kernels import dispatch
from pallas_kernels.depthwise_convolution import forms
from pallas_kernels.depthwise_convolution.call import DepthwiseCall
from pallas_kernels.depthwise_convolution.geometry import Geometry
from pallas_kernels.depthwise_convolution.primitive import convolution

# Number of taps that cost as much as the transforms, for each of the transforms' points (36 to 46 on two cores, for
# maps of 14x14 to 56x56; see ``python -m benchmarks.convolutions``).
TAPS_PER_POINT = 44
# Beyond this many unrolled taps compilation takes too long.
MOST_TAPS = 100


def depthwise_convolution(call: DepthwiseCall, form: str | None = None) -> tuple[jax.Array]:
    """The op; ``form`` is the name of one of :data:`forms.FORMS`, None for the result of :func:`choose`."""
    shared = call.kernel.ndim == 3
    x, kernel = (call.x[None], call.kernel[None]) if shared else (call.x[:, None], call.kernel)
    y = convolution(x, kernel, call.geometry, form or choose(call.geometry))
    return (y[0] if shared else y[:, 0],)


def choose(geometry: Geometry) -> str:
    """The name of the fastest form, or of one nearly as fast that compiles quickly.

    On a GPU it is cuDNN. On a CPU XLA's grouped convolution is 10 to 50 times slower than shifted additions for few
    taps, and than Fourier transforms for many taps. On a TPU nothing was measured: few taps are shifted additions there
    too, and many use the library.
    """
    platform = dispatch.current_platform()
    if platform == "gpu":
        return "library"
    transformed = TAPS_PER_POINT * math.prod(forms.fft_size(geometry)) / max(math.prod(geometry.output), 1)
    if geometry.taps <= min(transformed, MOST_TAPS):
        return "taps"
    return "library" if platform == "tpu" else "fft"
