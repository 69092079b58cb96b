"""Initializers: distributions, the same bits everywhere, parts equal to the whole, and what is refused."""

from __future__ import annotations

import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from layers import portable
from layers.initializers import (
    INITIALIZERS,
    Constant,
    Draw,
    Initializer,
    Normal,
    OnSphere,
    Orthogonal,
    SharedColumns,
    Transformed,
    TruncatedNormal,
    Uniform,
    VarianceScaling,
    create_initializer,
    inverse_softplus,
)
from layers.linear import Linear

SHAPE = (3, 256, 260)  # 199,680 numbers
FAN_IN, FAN_OUT = 3 * 256, 3 * 260
CUT = stats.truncnorm(-2, 2)


def scaled(distribution: stats.rv_continuous, scale: float, loc: float = 0.0):
    return lambda x: distribution.cdf((x - loc) / scale)


def moments(function) -> tuple[float, float]:
    """Mean and standard deviation of a function of a number uniform in [0, 1)."""
    x = function((np.arange(1_000_000) + 0.5) / 1_000_000)
    return x.mean(), x.std()


STEPS = Transformed("inverse_softplus_exp", Uniform(math.log(1e-3), math.log(0.1)))
# The distribution function, the mean and the standard deviation, each by an independent library or by hand.
DISTRIBUTIONS: dict[str, tuple[Initializer, object, float, float]] = {
    "normal": (Normal(0.5), scaled(stats.norm, 0.5), 0, 0.5),
    "truncated_normal": (TruncatedNormal(0.02), scaled(CUT, 0.02), 0, 0.02 * CUT.std()),
    "uniform": (Uniform(-1, 3), scaled(stats.uniform, 4, -1), 1, 4 / 12**0.5),
    "fan_in, normal": (VarianceScaling(2.0, "fan_in", "normal"), scaled(stats.norm, (2 / FAN_IN) ** 0.5), 0,
        (2 / FAN_IN) ** 0.5),
    "fan_out, truncated": (
        VarianceScaling(1.0, "fan_out", "truncated_normal"), scaled(CUT, FAN_OUT**-0.5 / CUT.std()), 0, FAN_OUT**-0.5
    ),
    "fan_avg, uniform": (
        VarianceScaling(1.0, "fan_avg", "uniform"),
        scaled(stats.uniform, 2 * (6 / (FAN_IN + FAN_OUT)) ** 0.5, -((6 / (FAN_IN + FAN_OUT)) ** 0.5)),
        0, (2 / (FAN_IN + FAN_OUT)) ** 0.5,
    ),
    "log": (Transformed("log", Uniform(1, 16)), lambda x: (np.exp(x) - 1) / 15, *moments(lambda u: np.log(1 + 15 * u))),
    "steps": (STEPS, lambda x: np.log(np.log1p(np.exp(x)) / 1e-3) / math.log(100),
        *moments(lambda u: np.log(np.expm1(1e-3 * 100**u)))),
}  # fmt: skip


def drawn(
    init: Initializer, shape: tuple[int, ...] = SHAPE, name: str = "blocks.0.kernel", dtype=np.float32
) -> np.ndarray:
    return Draw(init, shape, np.dtype(dtype), None).numbers(b"seed", name)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions(name: str) -> None:
    """Drawn on the host and by JAX, numbers are of the same distribution: its moments, and its distribution function
    everywhere.
    """
    init, cdf, mean, std = DISTRIBUTIONS[name]
    count = math.prod(SHAPE)
    by_jax = np.asarray(init.by_jax(jax.random.key(0), SHAPE, jnp.float32))
    for x in (drawn(init), by_jax):
        x = x.astype(np.float64).reshape(-1)
        assert abs(x.mean() - mean) < 5 * std / count**0.5
        assert abs(x.std() / std - 1) < 5 / count**0.5
        # A probability of 1e-5 that a right one fails.
        assert stats.kstest(x, cdf).statistic < 2.47 / count**0.5
    # Neighbors do not depend on each other: next in the stream, next in its other half, in the same row.
    z = (drawn(init).astype(np.float64).reshape(-1) - mean) / std
    for lag in (1, 2, 7, 8, SHAPE[-1]):
        assert abs(np.mean(z[lag:] * z[:-lag])) < 5 / count**0.5


def test_tails() -> None:
    """The table's ends: normal numbers go beyond five standard deviations as often as they should, cut ones stop at
    two.
    """
    x = drawn(Normal(1.0), (4, 1000, 1000))
    for bound, most in ((3.0, 10800 * 1.06), (4.0, 253 * 1.4), (4.5, 27 * 2.4)):
        expected = x.size * 2 * stats.norm.sf(bound)
        assert expected / (most / expected) < np.sum(np.abs(x) > bound) < most
    assert 1.9999 < np.abs(drawn(TruncatedNormal(1.0), (4, 1000, 1000))).max() <= 2
    p = 2.0 ** -np.arange(1, 31)
    np.testing.assert_allclose(portable._magnitude(p), stats.norm.isf(p / 2), rtol=1e-12)
    bits = (p * 2**31).astype(np.uint32)
    np.testing.assert_allclose(portable.normal(bits.copy()), stats.norm.isf(p / 2), atol=5e-6)
    np.testing.assert_array_equal(portable.normal(bits | np.uint32(1 << 31)), -portable.normal(bits.copy()))


def test_exponentials_and_logarithms() -> None:
    x = np.linspace(-80, 80, 10_001)
    np.testing.assert_allclose(portable.exp(x), np.exp(x), rtol=1e-15)
    np.testing.assert_allclose(portable.log(np.exp(x)), x, rtol=1e-14, atol=1e-15)


# Recorded once: the bits are the same for every platform and version of NumPy and JAX. A change changes every random
# model.
HASHES = {
    "normal": "25e705fcd19ab42d",
    "truncated_normal": "8d5a17adea9c2379",
    "uniform": "f6ab76e4430567a9",
    "fan_in, normal": "b1835968de0e9863",
    "fan_out, truncated": "bda85fc04b48af36",
    "fan_avg, uniform": "1f3b0aff5b505f14",
    "log": "77dbfb86daf8986f",
    "steps": "c4501af770dd324f",
    "on_sphere": "ed612c22ea18a715",
    "orthogonal": "bf4d0639aef221c3",
    "shared_columns": "22c8c6c55394fde9",
}


@pytest.mark.parametrize("name", [*DISTRIBUTIONS, "on_sphere", "orthogonal", "shared_columns"])
def test_bits_are_the_same_everywhere(name: str) -> None:
    others = {
        "on_sphere": OnSphere(),
        "orthogonal": Orthogonal(),
        "shared_columns": SharedColumns(Normal(1.0), (0, 8, 4), (20, 3)),
    }
    init = DISTRIBUTIONS[name][0] if name in DISTRIBUTIONS else others[name]
    assert hashlib.sha256(drawn(init, (5, 24, 40)).astype("<f4").tobytes()).hexdigest()[:16] == HASHES[name]


@pytest.mark.parametrize("name", INITIALIZERS)
@pytest.mark.parametrize(
    "index",
    [(slice(2, 5), slice(None)), (slice(None), slice(8, 12)), (slice(1, 2), slice(3, 4)), (slice(0, 0), slice(None))],
)
def test_a_part_is_that_of_the_whole(name: str, index: tuple[slice, ...]) -> None:
    draw = Draw(INITIALIZERS[name], (7, 16), np.dtype(np.float32), None)
    np.testing.assert_array_equal(draw.numbers(b"s", "a", index), draw.numbers(b"s", "a")[index])


def test_what_a_draw_depends_on() -> None:
    init, shape = Normal(1.0), (8, 8)
    draw = Draw(init, shape, np.dtype(np.float32), None)
    first = draw.numbers(b"s", "a")
    np.testing.assert_array_equal(first, draw.numbers(b"s", "a"))
    others = [
        draw.numbers(b"t", "a"),
        draw.numbers(b"s", "b"),
        Draw(init, (64,), np.dtype(np.float32), None).numbers(b"s", "a").reshape(shape),
    ]
    assert all(abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.6 for other in others)
    np.testing.assert_array_equal(drawn(init, dtype=jnp.bfloat16), drawn(init).astype(jnp.bfloat16))


def test_joint_initializers() -> None:
    for shape in ((16, 6), (6, 16), (3, 2, 8)):
        for x in (drawn(Orthogonal(2.0), shape), Orthogonal(2.0).by_jax(jax.random.key(0), shape, jnp.float32)):
            x = np.asarray(x).reshape(-1, shape[-1])
            gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
            np.testing.assert_allclose(gram, 4 * np.eye(len(gram)), atol=1e-5)
    for x in (drawn(OnSphere(), (4, 9, 32)), OnSphere().by_jax(jax.random.key(0), (4, 9, 32), jnp.float32)):
        np.testing.assert_allclose(np.mean(x, -1), 0, atol=1e-6)
        np.testing.assert_allclose(np.std(x, -1), 1, atol=1e-5)
    shared = SharedColumns(Normal(1.0), same=(2, 6, 4), zeros=(10, 2))
    for x in (drawn(shared, (5, 12)), np.asarray(shared.by_jax(jax.random.key(0), (5, 12), jnp.float32))):
        np.testing.assert_array_equal(x[:, 6:10], x[:, 2:6])
        np.testing.assert_array_equal(x[:, 10:], 0)
        assert np.all(x[:, :6] != 0)
    rows = Constant(((1.0,), (2.0,)))
    for x in (drawn(rows, (2, 3)), rows.by_jax(None, (2, 3), jnp.float32)):
        np.testing.assert_array_equal(x, [[1, 1, 1], [2, 2, 2]])


def test_a_layer_on_its_own_draws_as_flax_does() -> None:
    ours, theirs = Linear(5, 7, rngs=nnx.Rngs(3)), nnx.Linear(5, 7, rngs=nnx.Rngs(3))
    np.testing.assert_array_equal(ours.kernel[...], theirs.kernel[...])
    np.testing.assert_array_equal(ours.bias[...], theirs.bias[...])


def test_inverse_softplus() -> None:
    x = np.asarray([1e-6, 1e-3, 0.1, 1.0, 30.0], np.float32)
    np.testing.assert_allclose(jax.nn.softplus(inverse_softplus(jnp.asarray(x))), x, rtol=1e-4)


def test_mistakes() -> None:
    assert create_initializer("ones") is INITIALIZERS["ones"]
    for spec in ("glorot_unifrom", 3):
        with pytest.raises(ValueError, match=r"unknown initializer .*; known: zeros, .*or a callable"):
            Linear(2, 3, kernel_init=spec, rngs=nnx.Rngs(0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode is one of fan_in, fan_out, fan_avg; got 'fan'"):
        VarianceScaling(1.0, "fan", "normal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="distribution is one of normal, truncated_normal, uniform"):
        VarianceScaling(1.0, "fan_in", "gauss")  # type: ignore[arg-type]
