"""The forms of a depth-wise convolution and of its two gradients, in JAX's own operations.

Arrays are those of :mod:`pallas_kernels.depthwise_convolution.primitive`. Sums are float32, or float64 for float64
arrays.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from pallas_kernels.depthwise_convolution.geometry import Geometry, Pair, Part
from primitives import operations

# Unrolled products of the kernel's gradient, for XLA's CPU compiler: a view with more than 15 users is materialized
# before the loop over its elements, which then vectorizes; with up to 15 the fusion recomputes the view's index for
# each element, 6 times slower.
FEWEST, MOST = 16, 32


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, terms)


def taps(wanted: Part, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """The form in which each tap is a multiply-add of a shifted view; NaN affects only the outputs within reach."""
    with operations.multiply_adds():
        return {"y": _taps_output, "x": _taps_input, "kernel": _taps_kernel}[wanted](a, b, geometry).astype(a.dtype)


def _pad(x: jax.Array, rows: Pair, columns: Pair) -> jax.Array:
    """Pads each map with zeros; negative numbers crop."""
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))
    # Materialized once, not recomputed for each tap.
    return jax.lax.optimization_barrier(padded)


def _taps_output(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    (height, width), (down, across), (below, beside) = geometry.output, geometry.strides, geometry.dilation
    x, kernel = _pad(x, *geometry.padding), _wide(kernel)[:, None, :, :, None, None]

    def view(i: int, j: int) -> jax.Array:
        rows = slice(i * below, i * below + (height - 1) * down + 1, down)
        return x[:, :, rows, j * beside : j * beside + (width - 1) * across + 1 : across]

    return _sum(_wide(view(i, j)) * kernel[:, :, i, j] for i, j in itertools.product(*map(range, geometry.kernel)))


def _taps_input(dy: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    # Tap u reads position p of the input for output t where p + before = t stride + u dilation. Positions that differ
    # by a multiple of the stride (one phase) have the same taps, with outputs shifted by the same number.
    phases, sizes, edges = [], [], []
    for axis in range(2):
        stride, step, before, size = (
            geometry.strides[axis],
            geometry.dilation[axis],
            geometry.padding[axis][0],
            geometry.size[axis],
        )
        reads = [
            [
                (u, (phase + before - u * step) // stride)
                for u in range(geometry.kernel[axis])
                if (phase + before - u * step) % stride == 0
            ]
            for phase in range(stride)
        ]
        length = -(-size // stride)
        shifts = [shift for phase in reads for _, shift in phase]
        first, last = min(shifts, default=0), max(shifts, default=0)
        phases.append(reads)
        sizes.append(length)
        edges.append((-first, last + length - geometry.output[axis]))
    dy, kernel = _pad(dy, *edges), _wide(kernel)[:, None, :, :, None, None]
    shape = (*dy.shape[:2], *sizes, dy.shape[-1])

    def view(down: int, across: int) -> jax.Array:
        down, across = down + edges[0][0], across + edges[1][0]
        return _wide(dy[:, :, down : down + sizes[0], across : across + sizes[1]])

    def phase(rows: list[Pair], columns: list[Pair]) -> jax.Array:
        if not rows or not columns:
            return jnp.zeros(shape, kernel.dtype)
        return _sum(
            view(down, across) * kernel[:, :, i, j] for (i, down), (j, across) in itertools.product(rows, columns)
        )

    if geometry.strides == (1, 1):
        return phase(phases[0][0], phases[1][0])
    # (groups, n, rows, row phases, columns, column phases, channels): the phases are interleaved.
    dx = jnp.stack(
        [jnp.stack([phase(rows, columns).astype(dy.dtype) for columns in phases[1]], 4) for rows in phases[0]], 3
    )
    dx = dx.reshape(*shape[:2], sizes[0] * geometry.strides[0], sizes[1] * geometry.strides[1], -1)
    return dx[:, :, : geometry.size[0], : geometry.size[1]]


def _taps_kernel(x: jax.Array, dy: jax.Array, geometry: Geometry) -> jax.Array:
    # A scan over blocks of outputs adds their products with the views of the input that all taps read, into one array
    # of the kernel's shape for each example. This avoids reductions, which XLA's CPU compiler does not vectorize, and
    # products as large as the input.
    (height, width), (down, across), (below, beside) = geometry.output, geometry.strides, geometry.dilation
    reach_down, reach_across = geometry.reach
    columns = -(-width // -(-width // MOST))
    rows = min(
        range(min(-(-FEWEST // columns), height), min(max(MOST // columns, 1), height) + 1),
        key=lambda n: (-(-height // n) * n, n),
    )
    blocks = -(-height // rows), -(-width // columns)
    (before, _), (left, _) = geometry.padding
    whole = [
        (number * size - 1) * stride + reach
        for number, size, stride, reach in zip(blocks, (rows, columns), geometry.strides, geometry.reach)
    ]
    x = _pad(x, (before, whole[0] - geometry.size[0] - before), (left, whole[1] - geometry.size[1] - left))
    dy = _pad(dy, (0, blocks[0] * rows - height), (0, blocks[1] * columns - width))
    seen = (*x.shape[:2], (rows - 1) * down + reach_down, (columns - 1) * across + reach_across, x.shape[-1])

    def add(total: jax.Array, block: jax.Array) -> tuple[jax.Array, None]:
        row, column = block // blocks[1] * rows, block % blocks[1] * columns
        part = jax.lax.dynamic_slice(x, (0, 0, row * down, column * across, 0), seen)
        errors = jax.lax.dynamic_slice(dy, (0, 0, row, column, 0), (*dy.shape[:2], rows, columns, dy.shape[-1]))
        products = (
            _wide(part[:, :, r * down : r * down + reach_down : below, c * across : c * across + reach_across : beside])
            * _wide(errors[:, :, r : r + 1, c : c + 1])
            for r, c in itertools.product(range(rows), range(columns))
        )
        return functools.reduce(operator.add, products, total), None

    total = jnp.zeros((*x.shape[:2], *geometry.kernel, x.shape[-1]), jnp.promote_types(x.dtype, jnp.float32))
    total, _ = jax.lax.scan(add, total, jnp.arange(math.prod(blocks)))
    return jnp.sum(total, 1)


def fft_size(geometry: Geometry) -> Pair:
    """The size of the transforms: the padded input, without zeros at its end that those at its start can replace."""
    sizes = []
    for size, (before, _), output, stride, reach in zip(
        geometry.size, geometry.padding, geometry.output, geometry.strides, geometry.reach
    ):
        outputs = (output - 1) * stride + 1
        sizes.append(_smooth(max(size + before, outputs + reach - 1 - before, outputs, reach)))
    return sizes[0], sizes[1]


def _smooth(size: int) -> int:
    """The smallest size from ``size`` on without prime factors above 7."""
    while True:
        left = size
        for prime in (2, 3, 5, 7):
            while left % prime == 0:
                left //= prime
        if left == 1:
            return size
        size += 1


def fft(wanted: Part, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """The form by Fourier transforms, whose speed does not depend on the number of taps. Errors are relative to a whole
    map, and NaN spreads over it.
    """
    size = fft_size(geometry)
    spread: dict[Part, list[tuple[int, int, int]]] = {
        "x": [(before, 0, 0) for before, _ in geometry.padding],
        "kernel": [(0, 0, step - 1) for step in geometry.dilation],
        "y": [(0, 0, step - 1) for step in geometry.strides],
    }

    def spectrum(part: Part, x: jax.Array) -> jax.Array:
        """(..., rows, columns, channels) to (..., channels, frequencies)."""
        x = jnp.moveaxis(_wide(x), -1, -3)
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * (x.ndim - 2) + spread[part])
        x = jnp.fft.rfft2(x, size)
        return x[:, None] if part == "kernel" else x

    if wanted == "y":
        product = spectrum("x", a) * jnp.conj(spectrum("kernel", b))
    elif wanted == "x":
        product = spectrum("y", a) * spectrum("kernel", b)
    else:
        product = jnp.sum(spectrum("x", a) * jnp.conj(spectrum("y", b)), 1)
    found = jnp.moveaxis(jnp.fft.irfft2(product, size), -3, -1)
    rows, columns = (
        slice(start, start + (count - 1) * (step + 1) + 1, step + 1)
        for (start, _, step), count in zip(spread[wanted], geometry.of(wanted))
    )
    return found[..., rows, columns, :].astype(a.dtype)


def library(wanted: Part, a: jax.Array, b: jax.Array, geometry: Geometry) -> jax.Array:
    """The form by XLA's grouped convolution, which is cuDNN's on a GPU."""
    groups, channels = a.shape[0], a.shape[-1]

    def flat(x: jax.Array) -> jax.Array:
        """Moves the groups of examples into the channels: (..., rows, columns, groups * channels)."""
        x = jnp.moveaxis(x, 0, -2)
        return x.reshape(*x.shape[:-2], groups * channels)

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            flat(x),
            flat(kernel)[:, :, None],
            geometry.strides,
            geometry.padding,
            rhs_dilation=geometry.dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups * channels,
        )
        return jnp.moveaxis(y.reshape(*y.shape[:-1], groups, channels), -2, 0)

    if wanted == "y":
        return convolve(a, b)
    if wanted == "x":
        (dx,) = jax.linear_transpose(
            lambda x: convolve(x, b), jax.ShapeDtypeStruct((*a.shape[:2], *geometry.size, channels), a.dtype)
        )(a)
        return dx
    (dk,) = jax.linear_transpose(
        lambda kernel: convolve(a, kernel), jax.ShapeDtypeStruct((groups, *geometry.kernel, channels), a.dtype)
    )(b)
    return dk


FORMS: dict[str, Callable[[Part, jax.Array, jax.Array, Geometry], jax.Array]] = {
    "taps": taps,
    "fft": fft,
    "library": library,
}
