"""Random numbers that are bit-identical on every platform, drawn on the host, and the functions that shape them.

Random bits come from Philox (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011), a function of a key and
a counter, so that any part of an array can be drawn alone. Bits become numbers by +, -, *, /, sqrt and tables made with
them, which IEEE 754 rounds the same everywhere; logarithms and exponentials of platform libraries differ in the last
bits, so this file has its own.

Normal numbers are drawn by table lookup: the bits are a probability, whose floating-point exponent and first mantissa
bits select a segment of the inverse distribution function, linear within 1e-6, and whose last bits are the position in
the segment (Cheung, Lee, Luk & Villasenor, Hardware Generation of Arbitrary Random Number Distributions From Uniform
Distributions Via the Inversion Method, 2007). Each number uses exactly one word, which rejection sampling could not
guarantee.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable

import numpy as np

CHUNK = 1 << 16
"""Numbers drawn at a time, few enough that intermediate arrays stay in the cache."""

Fill = Callable[[np.ndarray], np.ndarray]
"""Turns a chunk of random words, uint32, into float32 numbers."""

_SEGMENT_BITS = 8  # segments for each power of two of the probability
_PLACE_BITS = 23 - _SEGMENT_BITS
_LARGEST = 31  # probabilities are words of 31 bits
_FIRST = 127 << _SEGMENT_BITS  # number of the segment of 2^0, as the float's exponent counts


def stream(*names: bytes | str) -> int:
    """The key of a stream of random words: a hash of its names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in names:
        part = name.encode() if isinstance(name, str) else name
        digest.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(digest.digest(), "little")


def words(key: int, start: int, count: int) -> np.ndarray:
    """Random words ``start`` to ``start + count`` of the stream ``key``: uint32 (count,)."""
    # A step of the counter gives four words of 64 bits; the lower half of each comes first.
    steps, skipped = divmod(start, 8)
    bits = np.random.Philox(key=key, counter=steps).random_raw(-(-(skipped + count) // 2))
    return bits.astype("<u8", copy=False).view("<u4")[skipped : skipped + count]


def draw(key: int, fill: Fill, out: np.ndarray, start: int = 0) -> None:
    """Fills ``out`` (any floating dtype, contiguous) with the numbers from index ``start`` on of the stream ``key``."""
    flat = out.reshape(-1)
    for first in range(0, flat.size, CHUNK):
        count = min(CHUNK, flat.size - first)
        flat[first : first + count] = fill(words(key, start + first, count))


def uniform(bits: np.ndarray) -> np.ndarray:
    """Uniform in [0, 1), multiples of 2^-24: float32."""
    return (bits >> np.uint32(8)).view(np.int32).astype(np.float32) * np.float32(2**-24)


def normal(bits: np.ndarray) -> np.ndarray:
    """Standard normal, float32; magnitudes are at most 6.2."""
    return _inverted(bits, *_table(None))


def truncated_normal(bits: np.ndarray) -> np.ndarray:
    """Standard normal between -2 and 2: float32."""
    return _inverted(bits, *_table(2.0))


def _inverted(bits: np.ndarray, offsets: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Numbers of a symmetric distribution: the highest bit is the sign, the others are the probability of a greater
    magnitude.
    """
    # A probability of 0, one case in 2^31, selects an entry before the first segment, whose magnitude is 0.
    probability = (bits & np.uint32(0x7FFFFFFF)).view(np.int32).astype(np.float32).view(np.int32)
    segment = (probability >> _PLACE_BITS).astype(np.intp)
    probability &= np.int32((1 << _PLACE_BITS) - 1)
    numbers = probability.astype(np.float32)
    numbers *= slopes.take(segment, mode="wrap")
    numbers += offsets.take(segment, mode="wrap")
    signed = numbers.view(np.uint32)
    signed |= bits & np.uint32(0x80000000)
    return numbers


@functools.cache
def _table(bound: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Values at the starts of the segments, and slopes, float32, indexed by exponent and first mantissa bits of a
    probability times 2^31.

    They are of the magnitude of a normal number, or of one truncated at ``bound``.
    """
    mantissas = 1 + np.arange(1 << _SEGMENT_BITS) / (1 << _SEGMENT_BITS)
    starts = (
        np.append(np.ldexp(mantissas[None], np.arange(_LARGEST)[:, None]).reshape(-1), 2.0**_LARGEST) * 2.0**-_LARGEST
    )
    outside = 0.0 if bound is None else float(_beyond(np.array([bound]))[0])
    values = _magnitude(outside + (1 - outside) * starts)
    slopes = (values[1:] - values[:-1]) * 2.0**-_PLACE_BITS
    # Chords lie on one side of a curve: shifted by half the error in the middle, their maximum error is halved.
    middles = _magnitude(outside + (1 - outside) * (starts[1:] + starts[:-1]) / 2)
    offsets = values[:-1] + (middles - (values[1:] + values[:-1]) / 2) / 2
    # Rounding to float32 can make the highest probability 1, whose magnitude is 0.
    first, second = (np.concatenate([np.zeros(_FIRST), a, [0.0]]).astype(np.float32) for a in (offsets, slopes))
    return first, second


def _magnitude(probability: np.ndarray) -> np.ndarray:
    """x >= 0 that a standard normal number exceeds in magnitude with the ``probability`` in (0, 1]."""
    # Abramowitz & Stegun, 26.2.23, has an error below 4.5e-4, which each Newton step squares.
    t = np.sqrt(-2 * log(probability / 2))
    x = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308)))
    for _ in range(4):
        x = np.maximum(x + (_beyond(x) - probability) / (math.sqrt(2 / math.pi) * exp(-x * x / 2)), 0.0)
    return x


def _beyond(x: np.ndarray) -> np.ndarray:
    """Probability that a standard normal number exceeds x >= 0 in magnitude."""
    density = math.sqrt(2 / math.pi) * exp(-x * x / 2)
    near = np.minimum(x, 3.0)
    term = total = near
    for n in range(1, 60):  # x + x^3 / 3 + x^5 / (3 5) + ...
        term = term * (near * near / (2 * n + 1))
        total = total + term
    far = np.maximum(x, 3.0)
    fraction = far
    for n in range(80, 0, -1):  # x + 1 / (x + 2 / (x + 3 / ...))
        fraction = far + n / fraction
    return np.where(x < 3.0, 1 - density * total, density / fraction)


_LOG2 = (0.693145751953125, 1.4286068203094173e-06)  # the first of 17 bits: its products with an exponent are exact


def exp(x: np.ndarray | float) -> np.ndarray:
    """e^x, float64, within a few units of the last place."""
    x = np.asarray(x, np.float64)
    power = np.rint(x * (1 / (_LOG2[0] + _LOG2[1])))
    rest = (x - power * _LOG2[0]) - power * _LOG2[1]
    total = np.ones_like(rest)
    for n in range(16, 0, -1):
        total = 1 + rest * total / n
    return np.ldexp(total, power.astype(np.int32))


def log(x: np.ndarray | float) -> np.ndarray:
    """The natural logarithm of x > 0, float64, within a few units of the last place."""
    mantissa, power = np.frexp(np.asarray(x, np.float64))
    low = mantissa < math.sqrt(0.5)
    mantissa, power = np.where(low, 2 * mantissa, mantissa), np.where(low, power - 1, power)
    ratio = (mantissa - 1) / (mantissa + 1)
    square, total = ratio * ratio, np.zeros_like(ratio)
    for n in range(27, 0, -2):  # 2 (r + r^3 / 3 + r^5 / 5 + ...)
        total = total * square + 1 / n
    return power * _LOG2[0] + (power * _LOG2[1] + 2 * ratio * total)
