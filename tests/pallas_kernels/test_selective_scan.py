"""The reference against its closed form, states over long times, cutting, padding, memory and refusals."""

from __future__ import annotations

import functools
import itertools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import selective_scan
from tests.compilation import OPTIMIZED

Arrays = dict[str, np.ndarray]
compiled = jax.jit(selective_scan, static_argnames=("return_state", "delta_softplus"))
# Ten thousand roundings in a row, as a random walk: sqrt(n) units in the last place.
LENGTH = 10_000
ROUNDING = math.sqrt(LENGTH) * np.finfo(np.float32).eps


def inputs(length: int, *, batch: int = 2, channels: int = 6, state_dim: int = 4, groups: int | None = None) -> Arrays:
    rng = np.random.default_rng(0)
    shared = (batch, length, *([groups] if groups else []), state_dim)
    return {
        "x": rng.standard_normal((batch, length, channels)),
        "delta": 0.3 * rng.exponential(size=(batch, length, channels)),
        "A": -np.exp(rng.standard_normal((channels, state_dim))),
        "B": rng.standard_normal(shared),
        "C": rng.standard_normal(shared),
    }


def single(arrays: Arrays) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}


def difference(a: jax.Array, b: jax.Array) -> float:
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(b))))


def test_reference_is_the_closed_form() -> None:
    """y_t = sum over s <= t of (C_t . exp(A (delta_{s+1} + ... + delta_t)) B_s) delta_s x_s + D x_t, gated; groups by
    repetition.
    """
    arrays = inputs(7, groups=2)
    rng = np.random.default_rng(1)
    arrays |= {
        "D": rng.standard_normal(6),
        "delta_bias": rng.standard_normal(6),
        "gate": rng.standard_normal((2, 7, 6)),
    }
    delta = np.log1p(np.exp(arrays["delta"] + arrays["delta_bias"]))
    want = np.zeros((2, 7, 6))
    for b, t, c in np.ndindex(2, 7, 6):
        group = c // 3
        for s in range(t + 1):
            kept = np.exp(arrays["A"][c] * delta[b, s + 1 : t + 1, c].sum())
            want[b, t, c] += (
                np.sum(arrays["C"][b, t, group] * kept * arrays["B"][b, s, group])
                * delta[b, s, c]
                * arrays["x"][b, s, c]
            )
        z = arrays["gate"][b, t, c]
        want[b, t, c] = (want[b, t, c] + arrays["D"][c] * arrays["x"][b, t, c]) * z / (1 + np.exp(-z))
    with jax.enable_x64(True):
        run = jax.jit(functools.partial(selective_scan, delta_softplus=True, implementation="reference"))
        got = run(**{n: jnp.asarray(x) for n, x in arrays.items()})
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("groups", [None, 2])
def test_cuts_change_nothing(groups: int | None) -> None:
    """One call, and two or many calls that hand the state over: token by token is how a model decodes."""
    arrays = single(inputs(37, groups=groups))
    whole, last = compiled(**arrays, return_state=True)
    for cuts in ((0, 16, 37), tuple(range(38))):
        state, pieces = jnp.zeros_like(last), []
        for start, end in itertools.pairwise(cuts):
            piece = {n: x if n == "A" else x[:, start:end] for n, x in arrays.items()}
            out, state = compiled(**piece, initial_state=state, return_state=True)
            pieces.append(out)
        assert difference(jnp.concatenate(pieces, axis=1), whole) < 2e-6
        assert difference(state, last) < 2e-6


@pytest.mark.parametrize(("rate", "survives"), [(1e-4, True), (1e-1, False)], ids=["survives", "vanishes"])
def test_state_after_ten_thousand_steps(rate: float, survives: bool) -> None:
    """The first state and the first token are read at the end with the right factor, and so are their gradients; or
    neither leaves a trace.
    """
    length, channels, state_dim = LENGTH, 2, 3
    arrays = inputs(length, batch=1, channels=channels, state_dim=state_dim)
    rng = np.random.default_rng(1)
    arrays["delta"], arrays["A"] = (
        0.5 + rng.random((1, length, channels)),
        -rate * (1 + rng.random((channels, state_dim))),
    )
    # One sign, so that no sum cancels and relative errors are those of the decays.
    arrays |= {n: np.abs(arrays[n]) for n in "xBC"}
    arrays["x"][:, 1:] = 0
    start = rng.random((1, channels, state_dim))

    @jax.jit
    def last(start: jax.Array, arrays: dict[str, jax.Array]) -> jax.Array:
        return selective_scan(**arrays, initial_state=start)[0, -1]

    got, pull = jax.vjp(last, jnp.asarray(start, jnp.float32), single(arrays))
    d_start, d_arrays = pull(jnp.ones_like(got))
    delta, rates = (np.asarray(arrays[n], np.float32).astype(np.float64) for n in ("delta", "A"))
    read = arrays["C"][0, -1]
    whole_way = read * np.exp(delta[0].sum(0)[:, None] * rates)
    first = np.sum(read * np.exp(delta[0, 1:].sum(0)[:, None] * rates) * arrays["B"][0, 0], axis=-1) * delta[0, 0]
    if survives:
        assert difference(got, np.sum(whole_way * start[0], axis=-1) + first * arrays["x"][0, 0]) < ROUNDING
        assert difference(d_start[0], whole_way) < ROUNDING
        assert difference(d_arrays["x"][0, 0], first) < ROUNDING
    else:
        for x in (got, d_start, d_arrays["x"][:, 0], d_arrays["A"]):
            np.testing.assert_array_equal(x, np.zeros_like(x))


def test_minus_infinity_before_softplus_is_padding() -> None:
    """Such a token leaves the state as it was bit for bit, and gradients stay finite."""
    arrays = single(inputs(21))
    bias = jnp.linspace(-1, 1, 6)
    scan = functools.partial(compiled, delta_bias=bias, delta_softplus=True, return_state=True)
    padded = arrays | {"delta": arrays["delta"].at[:, 13:].set(-jnp.inf)}
    state = scan(**padded)[1]
    np.testing.assert_array_equal(state, scan(**{n: x if n == "A" else x[:, :13] for n, x in arrays.items()})[1])
    gradients = jax.grad(lambda a: jnp.sum(jnp.sin(scan(**a)[1])))(padded)
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        if name != "A":
            np.testing.assert_array_equal(gradient[:, 13:], 0.0)


def test_memory_of_the_gradient_is_small() -> None:
    """Far below one state for each token, which autodiff of the recurrence keeps."""
    length, channels, state_dim = 1024, 64, 16
    arrays = jax.eval_shape(functools.partial(single, inputs(length, channels=channels, state_dim=state_dim)))
    program = jax.jit(jax.grad(lambda a: jnp.sum(jnp.square(selective_scan(**a)))))
    memory = program.lower(arrays).compile().memory_analysis().temp_size_in_bytes
    assert memory < 2 * length * channels * state_dim * 4 / 1.5


def test_low_precision_keeps_a_float32_state() -> None:
    arrays = single(inputs(40))
    low = {n: x if n in ("A", "delta") else x.astype(jnp.bfloat16) for n, x in arrays.items()}
    # Both fused alike, as they are for users, give the same bits.
    optimized = jax.jit(selective_scan, static_argnames="return_state", compiler_options=OPTIMIZED)
    out, state = optimized(**low, return_state=True)
    exact, exact_state = optimized(**{n: x.astype(jnp.float32) for n, x in low.items()}, return_state=True)
    assert out.dtype == jnp.bfloat16
    assert state.dtype == jnp.float32
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))
    np.testing.assert_array_equal(state, exact_state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (2, 5)}, "x must be (batch, length >= 1, channels)"),
        ({"A": (4, 6)}, "A must be (channels, state_dim >= 1)"),
        ({"C": (2, 5, 3)}, "B and C must both be"),
        ({"B": (2, 5, 4, 4), "C": (2, 5, 4, 4)}, "must divide the channels; got 4 and 6"),
        ({"delta": (2, 4, 6)}, "delta must have shape (2, 5, 6)"),
        ({"A": None}, "A must be (channels, state_dim >= 1) with 6 channels; got None"),
        ({"transition": "implicit"}, "the implicit transition has no A and no softplus; pass A=None"),
        ({"transition": "euler"}, 'transition is "exp" or "implicit"; got \'euler\''),
        ({"gate": (2, 5, 1)}, "gate must have shape (2, 5, 6)"),
        ({"initial_state": (2, 4, 6)}, "initial_state must have shape (2, 6, 4)"),
    ],
)
def test_refusals_say_what_is_wrong(change: dict, message: str) -> None:
    changed = {n: jnp.zeros(x) if isinstance(x, tuple) else x for n, x in change.items()}
    arguments: dict[str, Any] = single(inputs(5)) | changed
    with pytest.raises(ValueError, match=re.escape(message)):
        selective_scan(**arguments)
