"""State spaces against their papers' formulas: kernels and recurrences written out, and initial values of layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import S4D, Longhorn, Mamba, Mamba2, flatten, making
from layers.state_space.s4d import poles
from tests.compilation import program
from tests.layers.mixer_cases import relative

FORMS = [
    (initialization, discretization)
    for initialization in ("lin", "inv", "legs", "real")
    for discretization in ("zoh", "bilinear")
]
forms = pytest.mark.parametrize(("initialization", "discretization"), FORMS)


@pytest.fixture
def double() -> Any:
    with jax.enable_x64(True):
        yield


def made(layer: Callable[..., Any], *sizes: int, **options: Any) -> Any:
    """``layer`` of weights that the host draws."""
    return making.make(lambda rngs: layer(*sizes, rngs=rngs, **options), nnx.Rngs(0))


def s4d(initialization: Any = "legs", discretization: Any = "zoh", **options: Any) -> S4D:
    widest = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    options = {"state_dim": 8, "causal": True, "param_dtype": widest, **options}
    return made(S4D, 3, initialization=initialization, discretization=discretization, **options)


def written_out(layer: S4D) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A', B' and C (features, modes) in numpy, by the paper's table of discretizations with B = 1; conjugates are
    added, so that nothing is halved.
    """
    a = -np.exp(np.asarray(layer.log_A_real[...])) + 1j * (0 if layer.A_imag is None else np.asarray(layer.A_imag[...]))
    c = np.asarray(layer.C[0])
    c = c + 0j if layer.A_imag is None else c[..., 0] + 1j * c[..., 1]
    step = np.exp(np.asarray(layer.log_dt[...]))[:, None]
    if layer.A_imag is not None:
        a, c = (np.concatenate([v, v.conj()], axis=-1) for v in (a, c))
    if layer.discretization == "zoh":
        return np.exp(step * a), (np.exp(step * a) - 1) / a, c
    return (1 + step * a / 2) / (1 - step * a / 2), step / (1 - step * a / 2), c


@forms
def test_s4d_kernel_is_the_papers(double: Any, initialization: str, discretization: str) -> None:
    """K_l = sum_n C_n B'_n A'_n^l in float64, at lengths that are no squares and at one."""
    layer = s4d(initialization, discretization)
    decay, entering, output = written_out(layer)
    lengths = (1, 50, 301)
    for length, kernel in zip(lengths, jax.jit(lambda: [layer.kernel(n)[0] for n in lengths])(), strict=True):
        expected = np.einsum("hn,hn,hnl->hl", output, entering, decay[..., None] ** np.arange(length))
        assert np.abs(expected.imag).max() < 1e-12
        assert relative(kernel, expected.real) < 1e-11


@forms
def test_s4d_is_its_recurrence(double: Any, initialization: str, discretization: str) -> None:
    """Whole by FFT, against h_t = A' h + B' u_t, y_t = C h_t + D u_t token by token."""
    layer = s4d(initialization, discretization)
    decay, entering, output = written_out(layer)
    u = np.random.default_rng(0).standard_normal((2, 40, 3))
    hidden, expected = np.zeros((2, *decay.shape), complex), []
    for t in range(u.shape[1]):
        hidden = decay * hidden + entering * u[:, t, :, None]
        expected.append(np.sum(output * hidden, axis=-1).real + np.asarray(layer.D[...]) * u[:, t])
    y, found = jax.jit(lambda y, u: (layer.out(jax.nn.gelu(y, approximate=False)), layer(u)))(np.stack(expected, 1), u)
    value, gate = np.split(np.asarray(y), 2, axis=-1)
    assert relative(found, value / (1 + np.exp(-gate))) < 1e-11


def test_real_poles_may_overshoot(double: Any) -> None:
    """By the bilinear rule A' is negative where a step is above 2 / |pole|; whole, and after a state."""
    layer = s4d("real", "bilinear", state_dim=64, step_range=(0.05, 1.0))
    decay, entering, output = written_out(layer)
    assert (decay.real < 0).any()
    expected = np.einsum("hn,hn,hnl->hl", output, entering, decay[..., None] ** np.arange(50)).real
    assert relative(jax.jit(lambda: layer.kernel(50)[0])(), expected) < 1e-10
    u = np.random.default_rng(0).standard_normal((2, 9, 3))
    parts, state = [], layer.init_state(2, dtype=jnp.float64)
    for chunk in np.split(u, [4, 5], axis=1):
        y, state = program(layer, "extend")(chunk, state)
        parts.append(y)
    assert relative(np.concatenate(parts, 1), program(layer)(u)) < 1e-10


def test_s4d_bidirectional_kernel_reads_what_follows(double: Any) -> None:
    """The second kernel's entry j meets the token j + 1 later."""
    layer = s4d(causal=False)
    u = np.random.default_rng(0).standard_normal((1, 9, 3))
    (before, behind), found = jax.device_get(jax.jit(lambda u: (layer.kernel(9), layer(u)))(u))
    t = np.arange(9)
    lag = t[:, None] - t
    matrix = np.where(lag >= 0, before[:, np.maximum(lag, 0)], behind[:, np.maximum(-lag - 1, 0)])
    y = np.einsum("hts,bsh->bth", matrix, u) + np.asarray(layer.D[...]) * u
    value, gate = np.split(np.asarray(jax.jit(lambda y: layer.out(jax.nn.gelu(y, approximate=False)))(y)), 2, axis=-1)
    assert relative(found, value / (1 + np.exp(-gate))) < 1e-11


def test_s4d_remembers_for_ten_thousand_steps() -> None:
    """In float32, a state that takes 20,000 tokens to decay, carried through two chunks and a single step."""
    layer = s4d("lin", step_range=(1e-4, 1e-4))
    u = np.zeros((1, 10_000, 3), np.float32)
    u[:, 0] = 1
    extend, state = program(layer, "extend"), layer.init_state(1)
    for chunk in np.split(u, [7_000, 9_999], axis=1):
        _, state = extend(chunk, state)
    expected = np.exp(1e-4 * poles("lin", 8)) ** 9_999
    assert np.abs(np.asarray(state.hidden[0]) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("size", [4, 64])
def test_legs_poles_are_those_of_hippo(size: int) -> None:
    """The eigenvalues of HiPPO-LegS plus its rank-one correction, which is normal."""
    n = np.arange(size)
    hippo = -np.tril(np.sqrt(np.outer(2 * n + 1, 2 * n + 1)), -1) - np.diag(n + 1.0)
    root = np.sqrt(n + 0.5)
    eigenvalues = np.linalg.eigvals(hippo + np.outer(root, root))
    upper = np.sort_complex(eigenvalues[eigenvalues.imag > 0])
    assert relative(np.sort(poles("legs", size).imag), np.sort(upper.imag)) < 1e-9
    np.testing.assert_allclose(upper.real, -0.5, atol=1e-9 * size**2)


def test_poles_by_hand() -> None:
    np.testing.assert_allclose(poles("lin", 4), [-0.5, -0.5 + 1j * np.pi])
    np.testing.assert_allclose(poles("inv", 4), [-0.5 + 12j / np.pi, -0.5 + 4j / (3 * np.pi)])
    np.testing.assert_allclose(poles("real", 4), [-1, -2, -3, -4])


def test_s4d_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="lin, inv, legs, real; zoh, bilinear; got 'hippo' and 'zoh'"):
        s4d("hippo")
    with pytest.raises(ValueError, match="state_dim must be even"):
        s4d(state_dim=5)
    with pytest.raises(NotImplementedError, match="not causal"):
        s4d(causal=False).init_state(1)


@pytest.mark.parametrize("make", [Mamba, Mamba2])
def test_selective_layers_start_as_released(make: type) -> None:
    """Steps in [0.001, 0.1], A in [-16, -1], D = 1, projections within 1 / sqrt(fan_in), the output's divided by
    sqrt(depth).
    """
    layer = made(make, 64, depth=16)
    steps = jax.nn.softplus(layer.dt_bias[...])
    assert float(steps.min()) > 0.99e-3
    assert float(steps.max()) < 0.101
    rates = np.exp(np.asarray(layer.A_log[...]))
    assert rates.min() >= 1 - 1e-6
    assert rates.max() <= 16 + 1e-5
    np.testing.assert_array_equal(layer.D[...], 1)
    for kernel, bound in ((layer.in_proj.kernel[...], 1 / 8), (layer.out_proj.kernel[...], 128**-0.5 / 4)):
        assert 0.95 * bound < float(jnp.abs(kernel).max()) <= bound
    if make is Mamba:
        np.testing.assert_allclose(rates, np.broadcast_to(np.arange(1, 17), rates.shape), rtol=1e-6)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_mimetic_layers_start_as_linear_attention(kind: str) -> None:
    """y_t = W (sum_{s <= t} (C_t . C_s) u_s + D u_t) with the token's own u: nothing is convolved, forgotten or
    rescaled.
    """
    make: Any = Mamba if kind == "mamba" else Mamba2
    layer = made(make, 8, state_dim=4, initialization="mimetic")

    @jax.jit
    def attended(x: jax.Array) -> jax.Array:
        parts = jnp.split(layer.in_proj(x), [16, 32, 36, 40] if kind == "mamba2" else 2, axis=-1)
        z, u, *rest = parts if kind == "mamba2" else reversed(parts)
        u = jax.nn.silu(u)
        keys = jax.nn.silu(rest[0]) if rest else layer.x_proj(u)[..., -4:]
        scores = jnp.tril(jnp.einsum("btn,bsn->bts", keys, keys))
        y = jnp.einsum("bts,bsc->btc", scores, u) + u
        return layer.out_proj(y * jax.nn.silu(z) if kind == "mamba" else layer.norm(y, z))

    x = np.random.default_rng(0).standard_normal((2, 12, 8)).astype(np.float32)
    # What decays, decays by exp(-8) a token.
    assert relative(program(layer)(x), attended(x)) < 12 * np.exp(-8.0)


def test_unknown_initialization() -> None:
    for make in (Mamba, Mamba2):
        with pytest.raises(ValueError, match='initialization is "standard" or "mimetic", got \'orthogonal\''):
            make(8, initialization="orthogonal", rngs=nnx.Rngs(0))


def test_mamba2_heads() -> None:
    assert made(Mamba2, 64).heads == 2
    assert made(Mamba2, 40).heads == 2  # 80 channels: 40 is the greatest divisor up to 64
    with pytest.raises(ValueError, match=r"can't be split into heads of 24 in 1 equal groups"):
        Mamba2(16, head_dim=24, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"can't be split into heads of 8 in 3 equal groups"):
        Mamba2(16, head_dim=8, groups=3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", [Mamba, functools.partial(Mamba2, head_dim=1)], ids=["mamba", "mamba2"])
def test_first_steps_are_in_their_range(kind: Any) -> None:
    steps = jax.nn.softplus(made(kind, 64, step_range=(1e-5, 1e-2)).dt_bias[...])
    assert 0.99e-5 < float(steps.min()) < 2e-5
    assert 5e-3 < float(steps.max()) < 1.01e-2
    with pytest.raises(ValueError, match="step_range is two positive numbers"):
        kind(64, step_range=(0.1, 0.001), rngs=nnx.Rngs(0))


def test_longhorn_is_the_formula(double: Any) -> None:
    """The layer written out, token by token."""
    layer = made(Longhorn, 6, state_dim=3, step_rank=2, param_dtype=jnp.float64)
    x = np.random.default_rng(0).standard_normal((9, 6))
    weights = {name: np.asarray(value) for name, value in flatten(layer).items()}
    u, z = np.split(x @ weights["in_proj.kernel"], 2, axis=1)
    padded = np.concatenate([np.zeros((3, 12)), u])
    u = sum(padded[tap : tap + 9] * weights["conv.kernel"][tap, 0] for tap in range(4)) + weights["conv.bias"]
    u = u / (1 + np.exp(-u))
    steps, k, q = np.split(u @ weights["x_proj.kernel"], [2, 5], axis=1)
    s = 1 / (1 + np.exp(-(steps @ weights["dt_proj.kernel"] + weights["dt_bias"])))
    e = s / (1 + s * np.sum(k**2, axis=1, keepdims=True))
    h, y = np.zeros((12, 3)), np.zeros((9, 12))
    for t in range(9):
        h = (1 - np.outer(e[t], k[t] ** 2)) * h + np.outer(e[t] * u[t], k[t])
        y[t] = h @ q[t] + weights["D"] * u[t]
    want = (y * z / (1 + np.exp(-z))) @ weights["out_proj.kernel"]
    assert relative(program(layer)(x[None])[0], want) < 1e-12
