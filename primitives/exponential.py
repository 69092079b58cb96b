"""Exponential, softplus, SiLU and normal distribution function, faster than XLA's on CPUs: they take two thirds, a
third, two thirds and a half of the time.

XLA's CPU compiler spends about twenty cycles on a vector of exponentials, and recurrences over tokens are mostly
exponentials. Here 2^t = 2^n 2^f with n the integer nearest to t: 2^f is a polynomial of degree 6, and n is added to its
exponent bits. log(1 + y) for 0 <= y <= 1 is a polynomial too, and so is the ratio of the normal distribution's tail to
its density, in t = 1 / (1 + 0.35 |x|). Their relative errors, 4e-8 at most, are below float32's rounding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from primitives.platform import current_platform

LOG2_E = 1 / math.log(2)

_Fit = tuple[Callable[[np.ndarray], np.ndarray], int, float, float]
"""A function, the degree of its polynomial approximation, and the bounds of the interval."""


@functools.cache
def _polynomial(function: Callable[[np.ndarray], np.ndarray], degree: int, low: float, high: float) -> list[np.float32]:
    """Coefficients, highest power first, of a polynomial approximation of ``function`` on [``low``, ``high``]; computed
    at first use.
    """
    fit = np.polynomial.Chebyshev.interpolate(function, degree, domain=(low, high))
    return [np.float32(c) for c in fit.convert(kind=np.polynomial.Polynomial).coef[::-1]]


# Divided by the argument, which is multiplied afterwards: e^0 is exactly 1, and small log(1 + y) are accurate.
_POWER_OF_TWO: _Fit = (lambda f: np.expm1(f * math.log(2)) / f, 5, -0.5, 0.5)
_LOG1P: _Fit = (lambda y: np.log1p(y) / y, 10, 0.0, 1.0)


_TAIL_SCALE, _TAIL_END = 0.35, 13.2  # from there on the tail is 0 in float32


def _tail_over_density(t: np.ndarray) -> np.ndarray:
    """The normal distribution's tail over e^(-x^2 / 2) at x = (1 / t - 1) / scale, divided by t."""
    x = (1 / t - 1) / _TAIL_SCALE
    return 0.5 * np.vectorize(math.erfc)(x / math.sqrt(2)) * np.exp(x * x / 2) / t


_TAIL: _Fit = (_tail_over_density, 8, 1 / (1 + _TAIL_SCALE * _TAIL_END), 1.0)


def _evaluate(fit: _Fit, x: jax.Array) -> jax.Array:
    coefficients = _polynomial(*fit)
    value = coefficients[0] * x + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def _serves(x: jax.Array) -> bool:
    return x.dtype == jnp.float32 and current_platform() == "cpu"


@jax.custom_jvp
def exp2(t: jax.Array) -> jax.Array:
    """2^t: float32 on a CPU by the polynomial, to a relative error of 1e-7; ``jnp.exp2`` otherwise. Below -127 it is 0,
    from 128 on inf.
    """
    if not _serves(t):
        return jnp.exp2(t)
    # At both bounds f is 0, so the result has exactly the bits of 0 and of infinity.
    t = jnp.clip(t, -127.0, 128.0)
    n = jnp.round(t)
    f = t - n
    power = 1 + f * _evaluate(_POWER_OF_TWO, f)
    # Adding 1.5 * 2^23 puts an integer into the lowest bits of the float; an ordinary conversion would also check the
    # integer's range.
    bits = lax.bitcast_convert_type(power, jnp.int32) + (
        lax.bitcast_convert_type(n + jnp.float32(1.5 * 2**23), jnp.int32) << 23
    )
    return lax.bitcast_convert_type(bits, jnp.float32)


@exp2.defjvp
def _exp2_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, Any]:
    value = exp2(*primals)
    return value, math.log(2) * value * tangents[0]


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """log(1 + e^x): float32 on a CPU by polynomials, to a relative error of 1e-6; ``jax.nn.softplus`` otherwise."""
    if not _serves(x):
        return jax.nn.softplus(x)
    y = exp2(-LOG2_E * jnp.abs(x))
    return jnp.maximum(x, 0) + y * _evaluate(_LOG1P, y)


@softplus.defjvp
def _softplus_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, Any]:
    return softplus(*primals), jax.nn.sigmoid(primals[0]) * tangents[0]


Later = Callable[[], jax.Array]
"""A function that computes what only derivatives need."""


def value_and_gate(x: jax.Array, gate: jax.Array) -> tuple[jax.Array, Later]:
    """x sigmoid(gate) and, later, sigmoid(gate): float32 on a CPU as quotients by 1 + e^-gate, which XLA computes once;
    a product would be recomputed by each consumer.
    """
    if not _serves(gate):
        opened = jax.nn.sigmoid(gate)
        return x * opened, lambda: opened
    divisor = 1 + exp2(-LOG2_E * gate)
    return x / divisor, lambda: 1 / divisor


def _traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of arrays, traced once for each of their shapes and each platform."""

    @functools.partial(jax.jit, static_argnames="platform")
    def run(*arrays: jax.Array, platform: str) -> Any:
        del platform  # part of what a traced program is kept by
        return function(*arrays)

    return lambda *arrays: run(*arrays, platform=current_platform())


def _both(value: jax.Array, later: Later) -> tuple[jax.Array, jax.Array]:
    return value, later()


_gated = _traced(lambda x, gate: value_and_gate(x, gate)[0])
_gated_and_gate = _traced(lambda x, gate: _both(*value_and_gate(x, gate)))


@jax.custom_jvp
def gated(x: jax.Array, gate: jax.Array) -> jax.Array:
    """x sigmoid(gate), by :func:`value_and_gate`."""
    return _gated(x, gate)


@gated.defjvp
def _gated_jvp(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
    value, opened = _gated_and_gate(*primals)
    return value, opened * tangents[0] + value * (1 - opened) * tangents[1]


def activation(with_slope: Callable[[jax.Array], tuple[jax.Array, Later]]) -> Callable[[jax.Array], jax.Array]:
    """A function of each entry from one that also returns its derivative: a program is traced once for all layers of
    one shape, and a backward pass reads one array for each.
    """
    value, both = _traced(lambda x: with_slope(x)[0]), _traced(lambda x: _both(*with_slope(x)))

    @jax.custom_jvp
    @functools.wraps(with_slope)
    def function(x: jax.Array) -> jax.Array:
        return value(x)

    @function.defjvp
    def derivative(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, Any]:
        y, slope = both(*primals)
        return y, (slope * tangents[0]).astype(y.dtype)

    return function


@activation
def silu(x: jax.Array) -> tuple[jax.Array, Later]:
    """x sigmoid(x), the same as ``jax.nn.silu``, by :func:`value_and_gate`."""
    value, gate = value_and_gate(x, x)
    return value, lambda: slope_of_gated(value, gate(), 1)


def slope_of_gated(value: jax.Array, gate: jax.Array, inner: jax.Array | float) -> jax.Array:
    """The derivative of x sigmoid(u(x)), from it, the sigmoid and the derivative of u."""
    return gate + value * (1 - gate) * inner


@jax.custom_jvp
def normal_cdf(x: jax.Array) -> jax.Array:
    """The standard normal distribution function: float32 on a CPU by the polynomial, to a relative error of 1e-6 also
    in the lower tail; by erfc otherwise.
    """
    if not _serves(x):
        return 0.5 * lax.erfc(-math.sqrt(0.5) * x)
    t = 1 / (1 + _TAIL_SCALE * jnp.abs(x))
    tail = exp2(-0.5 * LOG2_E * x * x) * (t * _evaluate(_TAIL, t))
    return jnp.where(x > 0, 1 - tail, tail)


@normal_cdf.defjvp
def _normal_cdf_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, Any]:
    return normal_cdf(*primals), normal_density(*primals) * tangents[0]


def normal_density(x: jax.Array) -> jax.Array:
    """The density of the standard normal distribution."""
    return math.sqrt(0.5 / math.pi) * exp2(-0.5 * LOG2_E * x * x)
