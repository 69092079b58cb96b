"""The delta rule against its definition as matrices, cut anywhere, with keys that are alike, over long times, and what
it costs.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import delta_rule, linear_attention
from pallas_kernels.delta_rule.xla import unit_inverse
from primitives import operations
from tests.references import delta_rule as recorded

Arrays = dict[str, np.ndarray]
compiled = jax.jit(delta_rule, static_argnames=("return_state", "chunk_size", "scale"))


def inputs(
    length: int,
    *,
    steps: int = 1,
    gated: bool = True,
    heads: int = 4,
    groups: int = 2,
    dim: int = 8,
    strongest: float = 2.0,
) -> Arrays:
    rng = np.random.default_rng(0)
    k = rng.standard_normal((2, length * steps, groups, dim))
    arrays = {
        "q": rng.standard_normal((2, length, groups, dim)),
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": rng.standard_normal((2, length * steps, heads, dim)),
        "beta": strongest * rng.random((2, length * steps, heads)),
    }
    return arrays | ({"decay": -0.2 * rng.exponential(size=(2, length, heads))} if gated else {})


def single(arrays: Arrays) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}


def difference(a: jax.Array, b: jax.Array) -> float:
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(b))))


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("steps", [1, 3])
def test_reference_is_a_product_of_householder_matrices(steps: int, gated: bool) -> None:
    arrays = inputs(6, steps=steps, gated=gated)
    with jax.enable_x64(True):
        run = jax.jit(functools.partial(delta_rule, return_state=True, implementation="reference"))
        got, last = run(**{n: jnp.asarray(x) for n, x in arrays.items()})
    for b, h in np.ndindex(2, 4):
        state = np.zeros((8, 8))
        for t in range(6):
            state = state * (np.exp(arrays["decay"][b, t, h]) if gated else 1)
            for j in range(t * steps, (t + 1) * steps):
                k, v, beta = arrays["k"][b, j, h // 2], arrays["v"][b, j, h], arrays["beta"][b, j, h]
                state = (np.eye(8) - beta * np.outer(k, k)) @ state + beta * np.outer(k, v)
            np.testing.assert_allclose(
                got[b, t, h], arrays["q"][b, t, h // 2] @ state / np.sqrt(8), rtol=1e-9, atol=1e-12
            )
        np.testing.assert_allclose(last[b, h], state, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", recorded.CASES)
def test_recorded_outputs_of_flash_linear_attention(name: str, record_property: Callable[..., None]) -> None:
    arrays, want, last = recorded.load(name)
    got, state = compiled(**single(arrays), return_state=True)
    largest = max(difference(got, want), difference(state, last))
    row = {
        "architecture": f"delta_rule (op, {name})",
        "reference": "github.com/fla-org/flash-linear-attention",
        "kind": "recorded",
        "mapped": 0,
    }
    record_property("parity", {**row, "difference": largest})
    assert largest < 5e-6


def test_chunk_size_and_cuts_change_nothing() -> None:
    """One call, other chunks, and two or many calls that hand the state over: token by token is how a model decodes."""
    steps = 2
    arrays = single(inputs(23, steps=steps))
    whole, last = compiled(**arrays, return_state=True)
    other, state = compiled(**arrays, return_state=True, chunk_size=4)
    assert difference(other, whole) < 3e-6
    assert difference(state, last) < 3e-6
    for cuts in ((0, 10, 20, 23), tuple(range(24))):
        state, pieces = jnp.zeros_like(last), []
        for start, end in itertools.pairwise(cuts):
            piece = {
                n: x[:, start:end] if n in ("q", "decay") else x[:, start * steps : end * steps]
                for n, x in arrays.items()
            }
            out, state = compiled(**piece, initial_state=state, return_state=True, chunk_size=8)
            pieces.append(out)
        assert difference(jnp.concatenate(pieces, axis=1), whole) < 3e-6
        assert difference(state, last) < 3e-6


def test_writes_to_orthogonal_keys_are_linear_attention() -> None:
    """A memory of 8 keys that never meet twice has nothing to correct."""
    arrays = single(inputs(8, gated=True, groups=4))
    arrays["k"] = jnp.broadcast_to(jnp.eye(8)[None, :, None], arrays["k"].shape)
    written = arrays["beta"][..., None] * arrays["v"]
    assert (
        difference(compiled(**arrays), linear_attention(arrays["q"], arrays["k"], written, decay=arrays["decay"]))
        < 1e-6
    )


def test_one_key_written_again_holds_the_last_value() -> None:
    """With beta = 1 a value replaces the one before, after 1000 of them too."""
    rng = np.random.default_rng(0)
    key = rng.standard_normal(8)
    key = jnp.broadcast_to(jnp.asarray(key / np.linalg.norm(key), jnp.float32), (1, 1000, 1, 8))
    values = jnp.asarray(rng.standard_normal((1, 1000, 1, 8)), jnp.float32)
    assert difference(compiled(key, key, values, jnp.ones((1, 1000, 1)), scale=1.0), values) < 2e-6


def test_reflections_keep_the_norm_of_the_state() -> None:
    """beta = 2 and no values: ten thousand orthogonal transitions in float32."""
    rng = np.random.default_rng(0)
    k = rng.standard_normal((1, 10_000, 1, 8))
    k = jnp.asarray(k / np.linalg.norm(k, axis=-1, keepdims=True), jnp.float32)
    start = jnp.asarray(rng.standard_normal((1, 1, 8, 8)), jnp.float32)
    state = compiled(k, k, jnp.zeros_like(k), 2 * jnp.ones(k.shape[:3]), initial_state=start, return_state=True)[1]
    assert difference(jnp.linalg.norm(state), jnp.linalg.norm(start)) < 1e-3


@jax.jit
def inverse_and_gradient(lower: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    out, pull = jax.vjp(unit_inverse, lower)
    return out, pull(cotangent)[0]


@pytest.mark.parametrize("steps", [1, 2, 6, 16, 20, 48, 64])
@pytest.mark.parametrize("alike", [False, True], ids=["random", "identical"])
def test_inverse(steps: int, alike: bool) -> None:
    """(I + lower)^-1 and its gradient against NumPy in float64; identical keys with beta near 2 are where powers of the
    matrix explode.
    """
    rng = np.random.default_rng(0)
    k = rng.standard_normal((steps, 8))
    k = np.repeat(k[:1], steps, axis=0) if alike else k
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    lower = np.tril(1.95 * k @ k.T, -1)
    want = np.linalg.inv(np.eye(steps) + lower)
    cotangent = rng.standard_normal((steps, steps))
    got, pulled = inverse_and_gradient(lower.astype(np.float32), cotangent.astype(np.float32))
    assert difference(got, want) < 1e-5
    gradient = np.tril(pulled, -1)
    if steps > 1:
        assert difference(gradient, np.tril(-want.T @ cotangent @ want.T, -1)) < 3e-5


def test_minus_infinity_forgets_everything() -> None:
    """What follows a reset is what it is after nothing, and the gradients are those of a reset by a huge number."""
    arrays = inputs(21)
    arrays["decay"][:, 9] = -np.inf
    nothing = arrays | {"beta": np.where(np.arange(21)[:, None] < 9, 0, arrays["beta"])}

    @jax.jit
    def run(arrays: dict[str, jax.Array]) -> Any:
        out, pull = jax.vjp(lambda a: delta_rule(**a), arrays)
        return out, pull(jnp.cos(out))[0]

    (out, exact), (fresh, _) = run(single(arrays)), run(single(nothing))
    assert difference(out[:, 9:], fresh[:, 9:]) < 2e-6
    finite = run(single(arrays | {"decay": np.maximum(arrays["decay"], -1e4)}))[1]
    for name in arrays:
        np.testing.assert_array_equal(exact[name], finite[name])


def gradient_program(length: int, steps: int = 1) -> tuple:
    arrays = jax.eval_shape(functools.partial(single, inputs(length, steps=steps, heads=4, groups=4, dim=32)))
    return jax.grad(lambda a: jnp.sum(jnp.square(delta_rule(**a, chunk_size=32)))), arrays


def test_memory_of_the_gradient_is_small() -> None:
    """Far below one state for each step, which autodiff of the recurrence keeps, or a number for each pair of steps."""
    length, steps = 1024, 2
    program, arrays = gradient_program(length, steps)
    memory = jax.jit(program).lower(arrays).compile().memory_analysis().temp_size_in_bytes
    assert memory < 2 * length * steps * 4 * 32 * 32 * 4 / 2 < 2 * 4 * (length * steps) ** 2 * 4 / 2


def test_operations_are_linear_in_length() -> None:
    assert operations.exponent(gradient_program, lengths=(2**10, 2**11, 2**12)) == pytest.approx(1, abs=0.02)


def test_low_precision_keeps_a_float32_state() -> None:
    arrays = single(inputs(40))
    low = {n: x if n == "decay" else x.astype(jnp.bfloat16) for n, x in arrays.items()}
    out, state = compiled(**low, return_state=True)
    exact, exact_state = compiled(**{n: x.astype(jnp.float32) for n, x in low.items()}, return_state=True)
    assert out.dtype == jnp.bfloat16
    assert state.dtype == jnp.float32
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))
    np.testing.assert_array_equal(state, exact_state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (2, 5, 2, 4)}, "q is (batch, length, groups, key_dim), k (batch, length * steps, groups, key_dim)"),
        ({"v": (2, 6, 4, 8)}, "got (2, 5, 2, 8), (2, 5, 2, 8), (2, 6, 4, 8)"),
        ({"v": (2, 5, 3, 8)}, "heads a multiple of groups; got length 5, 5 keys, 3 heads, 2 groups"),
        ({"q": (2, 3, 2, 8)}, "the keys a multiple of it"),
        ({"beta": (2, 5, 2)}, "beta must be (batch, length * steps, heads) = (2, 5, 4)"),
        ({"decay": (2, 5, 4, 7)}, "decay must have one of the shapes ((2, 5, 4), (2, 5, 4, 8)); got (2, 5, 4, 7)"),
        ({"read_key": (2, 5, 4, 8)}, "read_key must have the shape of k, (2, 5, 2, 8); got (2, 5, 4, 8)"),
        ({"initial_state": (2, 4, 8, 7)}, "initial_state must be (batch, heads, key_dim, value_dim)"),
        ({"chunk_size": 48}, "chunk_size must be a power of two; got 48"),
    ],
)
def test_refusals(change: dict, message: str) -> None:
    shapes = {"q": (2, 5, 2, 8), "k": (2, 5, 2, 8), "v": (2, 5, 4, 8), "beta": (2, 5, 4), **change}
    options = {n: shapes.pop(n) for n in ("chunk_size",) if n in shapes}
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(
            functools.partial(delta_rule, **options),
            **{n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()},
        )
