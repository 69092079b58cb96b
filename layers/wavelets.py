"""Wavelet transforms along a sequence and their inverses, with a filter for each feature, for rows of any length.

    cA[i] = sum_k h[k] x[2 i + 1 - k]      cD[i] = sum_k g[k] x[2 i + 1 - k]      g[k] = (-1)^(k + 1) h[taps - 1 - k]

with x reflected at both ends; the next level transforms cA. It is invertible for orthogonal filters h, and equals that
of PyWavelets with ``mode="reflect"``.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from layers.mixer import without_padding
from pallas_kernels import depthwise_convolution

Band = tuple[jax.Array, jax.Array]
"""Coefficients (batch, length, features), and how many of each row are real, (batch,) int32."""


@functools.cache
def daubechies(taps: int) -> np.ndarray:
    """The Daubechies filter h with taps / 2 vanishing moments, float64 (taps,); the roots that it is computed from are
    accurate up to 40 taps.

    Raises:
      ValueError: ``taps`` is odd or not from 2 to 40.
    """
    if taps % 2 or not 2 <= taps <= 40:
        raise ValueError(f"Daubechies filters have an even number of taps, from 2 to 40; got {taps}")
    moments = taps // 2
    roots = np.roots([math.comb(moments - 1 + k, k) for k in range(moments - 1, -1, -1)])
    found = np.ones(1)
    for y in roots:
        pair = np.roots([1, -(2 - 4 * y), 1])
        found = np.convolve(found, [1, -pair[np.abs(pair).argmin()]])
    for _ in range(moments):
        found = np.convolve(found, [1, 1])
    found = np.real(found)
    return (found * math.sqrt(2) / found.sum())[::-1]


def rotated(angles: jax.Array) -> jax.Array:
    """An orthogonal filter (2 n, features) for any ``angles`` (n, features): n layers of 2x2 rotations of neighboring
    taps, with the pairs shifted by one between layers.
    """
    count, features = angles.shape
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    taps = jnp.zeros((2 * count, features), angles.dtype).at[0].set(1)
    for i in range(count):
        first, second = taps[::2], taps[1::2]
        pair = first * sine[i] + second * cosine[i], first * cosine[i] - second * sine[i]
        taps = jnp.roll(jnp.stack(pair, 1).reshape(taps.shape), 1, 0)
    return jnp.roll(taps, -1, 0)


def detail(low: jax.Array) -> jax.Array:
    """The high-pass filter g that belongs to the low-pass filter ``low``, both (taps, features)."""
    sign = jnp.where(jnp.arange(len(low)) % 2, 1.0, -1.0).astype(low.dtype)
    return sign[:, None] * low[::-1]


def _convolved(x: jax.Array, kernel: jax.Array, stride: int, before: int) -> jax.Array:
    """sum_u kernel[u] x[stride i + u - before]."""
    padding = ((before, 0), (0, 0))
    return depthwise_convolution(x[:, :, None], kernel[:, None, None], strides=(stride, 1), padding=padding)[:, :, 0]


def analyzed(x: jax.Array, count: jax.Array, low: jax.Array, levels: int) -> list[Band]:
    """The bands of ``x``: cA of the last level, then cD from the last level to the first.

    Args:
      x: (batch, length, features).
      count: (batch,) int32, real tokens of each row, at least 1.
      low: h, (taps, features).
    """
    taps, bands = len(low), list[Band]()
    for _ in range(levels):
        length = (x.shape[1] + taps - 1) // 2
        place = jnp.arange(2 - taps, 2 * length)
        period = jnp.maximum(2 * (count - 1), 1)[:, None]
        place = place % period
        place = jnp.minimum(place, period - place) * (count > 1)[:, None]
        beyond = jnp.take_along_axis(x, place[..., None], 1)
        count = (count + taps - 1) // 2
        real = jnp.arange(length) < count[:, None]
        x, fine = (without_padding(_convolved(beyond, f[::-1], 2, 0), real) for f in (low, detail(low)))
        bands.append((fine, count))
    return [(x, count), *reversed(bands)]


def synthesized(bands: list[Band], low: jax.Array, lengths: list[int]) -> jax.Array:
    """The inverse of :func:`analyzed`, for orthogonal filters: (batch, length, features).

    Args:
      bands: as :func:`analyzed` returns them; coefficients beyond a row's count must be 0.
      low: h, (taps, features).
      lengths: length of the input of each level, starting with that of ``x``.
    """
    (x, _), *fine = bands
    high, taps = detail(low), len(low)
    for (band, _), length in zip(fine, reversed(lengths), strict=True):
        parts = []
        for coefficients, f in ((x, low), (band, high)):
            apart = jnp.stack([coefficients, jnp.zeros_like(coefficients)], 2)
            apart = apart.reshape(len(x), -1, x.shape[-1])[:, : length + taps - 2]
            parts.append(_convolved(apart, f, 1, 1))  # synthesis filters are the reversed analysis filters
        x = parts[0] + parts[1]
    return x


def lifted(x: jax.Array, count: jax.Array, levels: int) -> list[Band]:
    """As :func:`analyzed`, by lifting: odd samples minus their prediction by even neighbors, and updated even samples.

    d[i] = x[2 i + 1] - (x[2 i] + x[2 i + 2]) / 2 and s[i] = x[2 i] + (d[i - 1] + d[i]) / 4; a neighbor beyond an end is
    replaced by the nearest one.
    """
    bands = list[Band]()
    for _ in range(levels):
        even, odd = _parted(x)
        evens, odds = (count + 1) // 2, count // 2
        fine = odd - (even + _neighbor(even, 1, evens)) / 2
        fine = fine[:, : max(x.shape[1] // 2, 1)]  # of an odd length the last pair has one sample
        fine = without_padding(fine, jnp.arange(fine.shape[1]) < odds[:, None])
        beside = _as_long(fine, even)
        x = even + (_neighbor(beside, -1, odds) + _neighbor(beside, 0, odds)) / 4
        bands.append((fine, odds))
        count = evens
        x = without_padding(x, jnp.arange(x.shape[1]) < count[:, None])
    return [(x, count), *reversed(bands)]


def lowered(bands: list[Band], lengths: list[int]) -> jax.Array:
    """The inverse of :func:`lifted`; arguments as in :func:`synthesized`."""
    (x, count), *fine = bands
    for (band, odds), length in zip(fine, reversed(lengths), strict=True):
        band = _as_long(band, x)
        even = x - (_neighbor(band, -1, odds) + _neighbor(band, 0, odds)) / 4
        odd = band + (even + _neighbor(even, 1, count)) / 2
        x, count = jnp.stack([even, odd], 2).reshape(len(x), -1, x.shape[-1])[:, :length], count + odds
    return x


def _parted(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Even and odd samples, padded to equal numbers."""
    pairs = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0))).reshape(len(x), -1, 2, x.shape[-1])
    return pairs[:, :, 0], pairs[:, :, 1]


def _as_long(x: jax.Array, other: jax.Array) -> jax.Array:
    """``x`` with zeros behind, up to the length of ``other``."""
    return jnp.pad(x, ((0, 0), (0, other.shape[1] - x.shape[1]), (0, 0)))


def _neighbor(x: jax.Array, step: int, count: jax.Array) -> jax.Array:
    """For each index the entry ``step`` later, or the nearest real one; the first entry in a row without real ones."""
    place = jnp.clip(jnp.arange(x.shape[1]) + step, 0, jnp.maximum(count - 1, 0)[:, None])
    return jnp.take_along_axis(x, place[..., None], 1)
