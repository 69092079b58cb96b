"""The reference against its definition as one sum, states over long times, cutting, memory and refusals."""

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

from pallas_kernels import linear_attention
from tests.tiers import tiered

DECAYS = ("head", "token", "key")
Arrays = dict[str, np.ndarray]
compiled = jax.jit(linear_attention, static_argnames=("return_state", "chunk_size", "causal"))
# Ten thousand roundings in a row, as a random walk: sqrt(n) units in the last place.
LENGTH = 10_000
ROUNDING = math.sqrt(LENGTH) * np.finfo(np.float32).eps


def inputs(length: int, decay: str | None, *, batch: int = 2, heads: int = 4, groups: int = 2, dim: int = 8) -> Arrays:
    rng = np.random.default_rng(0)
    arrays = {
        "q": rng.standard_normal((batch, length, groups, dim)),
        "k": rng.standard_normal((batch, length, groups, dim)),
        "v": rng.standard_normal((batch, length, heads, dim)),
    }
    if decay is not None:
        each = (batch, length, heads, dim)
        shape = {"head": (heads,), "token": each[:3], "key": each, "value": each}[decay]
        arrays["value_decay" if decay == "value" else "decay"] = -0.2 * rng.exponential(size=shape)
    return arrays


def single(arrays: Arrays) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}


def difference(a: jax.Array, b: jax.Array) -> float:
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(b))))


def as_one_sum(arrays: Arrays, causal: bool, exclusive: bool) -> np.ndarray:
    """Every output as a sum over every token that it reads, each weighed by the decays on the way."""
    q, k, v = (arrays[n] for n in "qkv")
    batch, length, heads, dim = v.shape
    on_values = "value_decay" in arrays
    decay = arrays.get("decay", arrays.get("value_decay", np.zeros(heads)))
    decay = np.broadcast_to(decay if decay.ndim == 4 else decay[..., None], (batch, length, heads, dim))
    backward = arrays.get("backward_decay", decay)
    out = np.zeros_like(v)
    for b, t, h, s in np.ndindex(batch, length, heads, length):
        if causal and s > t:
            continue
        way = decay[b, s + 1 : t + (not exclusive), h] if s <= t else backward[b, t:s, h]
        weight = np.exp(way.sum(0))
        if exclusive and s == t:
            weight = arrays["bonus"][h]
        group = h * q.shape[2] // heads
        on_keys, on_value = (1, weight) if on_values else (weight, 1)
        out[b, t, h] += np.sum(q[b, t, group] * on_keys * k[b, s, group]) / np.sqrt(dim) * on_value * v[b, s, h]
    return out


@pytest.mark.parametrize("direction", ["causal", "both_ways", "exclusive"])
@pytest.mark.parametrize("decay", [None, *DECAYS, "value"])
def test_reference_is_the_decayed_sum(decay: str | None, direction: str) -> None:
    """From the right with a decay of its own where it can have one; before the token with a bonus."""
    arrays, causal, exclusive = inputs(9, decay), direction != "both_ways", direction == "exclusive"
    rng = np.random.default_rng(1)
    if exclusive:
        arrays["bonus"] = rng.standard_normal((4, 8)) * (decay != "value")
    if decay == "key" and not causal:
        arrays["backward_decay"] = -0.2 * rng.exponential(size=arrays["decay"].shape)
    options = {"causal": causal, "exclusive": exclusive, "implementation": "reference"}
    with jax.enable_x64(True):
        got = jax.jit(functools.partial(linear_attention, **options))(**{n: jnp.asarray(x) for n, x in arrays.items()})
    np.testing.assert_allclose(got, as_one_sum(arrays, causal, exclusive), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("decay", tiered(["head", "key", "value"], lambda decay: decay != "value"))
def test_chunk_size_and_cuts_change_nothing(decay: str | None) -> None:
    """One call, other chunks, and two or many calls that hand the state over: token by token is how a model decodes."""
    arrays = single(inputs(23, decay))
    whole, last = compiled(**arrays, return_state=True)
    other, state = compiled(**arrays, return_state=True, chunk_size=4)
    assert difference(other, whole) < 2e-6
    assert difference(state, last) < 2e-6
    for cuts in ((0, 10, 20, 23), tuple(range(24))):
        state, pieces = jnp.zeros_like(last), []
        for start, end in itertools.pairwise(cuts):
            piece = {n: x if x.ndim == 1 else x[:, start:end] for n, x in arrays.items()}
            out, state = compiled(**piece, initial_state=state, return_state=True, chunk_size=8)
            pieces.append(out)
        assert difference(jnp.concatenate(pieces, axis=1), whole) < 2e-6
        assert difference(state, last) < 2e-6


@pytest.mark.parametrize("decay", tiered(["token", "key"], lambda decay: decay == "key"))
@pytest.mark.parametrize(("rate", "survives"), [(1e-4, True), (1e-1, False)], ids=["survives", "vanishes"])
def test_state_after_ten_thousand_steps(decay: str, rate: float, survives: bool) -> None:
    """The first state and the first token are read at the end with the right factor, and so are their gradients; or
    neither leaves a trace.
    """
    length, dim = LENGTH, 4
    arrays = inputs(length, decay, batch=1, heads=1, groups=1, dim=dim)
    arrays["decay"] = -2 * rate * np.random.default_rng(1).random(arrays["decay"].shape)
    # One sign, so that no sum cancels and relative errors are those of the decays.
    arrays |= {n: np.abs(arrays[n]) for n in "qkv"}
    arrays["k"][:, 1:] = 0
    start = np.random.default_rng(2).random((1, 1, dim, dim))

    @jax.jit
    def last(start: jax.Array, arrays: dict[str, jax.Array]) -> jax.Array:
        return linear_attention(**arrays, initial_state=start)[0, -1, 0]

    got, pull = jax.vjp(last, jnp.asarray(start, jnp.float32), single(arrays))
    d_start, d_arrays = pull(jnp.ones_like(got))
    total = np.broadcast_to(
        np.asarray(arrays["decay"], np.float32).astype(np.float64).reshape(length, -1), (length, dim)
    )
    query = arrays["q"][0, -1, 0] / np.sqrt(dim)
    first = query * np.exp(total[1:].sum(0))
    want = (query * np.exp(total.sum(0))) @ start[0, 0] + first @ arrays["k"][0, 0, 0] * arrays["v"][0, 0, 0]
    if survives:
        assert difference(got, want) < ROUNDING
        assert difference(d_start[0, 0], np.outer(query * np.exp(total.sum(0)), np.ones(dim))) < ROUNDING
        assert difference(d_arrays["k"][0, 0, 0], first * arrays["v"][0, 0, 0].sum()) < ROUNDING
    else:
        for x in (got, d_start, d_arrays["k"][:, 0], d_arrays["decay"]):
            np.testing.assert_array_equal(x, np.zeros_like(x))


@pytest.mark.parametrize("decay", ["token", "key", "value"])
def test_minus_infinity_forgets_everything(decay: str) -> None:
    """What follows a reset is what it is after nothing, and the gradients are those of a reset by a huge number."""
    arrays, given = inputs(21, decay), "value_decay" if decay == "value" else "decay"
    arrays[given][:, 9] = -np.inf
    nothing = arrays | {"k": np.where(np.arange(21)[:, None, None] < 9, 0, arrays["k"])}

    @jax.jit
    def run(arrays: dict[str, jax.Array]) -> Any:
        out, pull = jax.vjp(lambda a: linear_attention(**a), arrays)
        return out, pull(jnp.cos(out))[0]

    (out, exact), (fresh, _) = run(single(arrays)), run(single(nothing))
    np.testing.assert_array_equal(out[:, 9:], fresh[:, 9:])
    finite = run(single(arrays | {given: np.maximum(arrays[given], -1e4)}))[1]
    for name in arrays:
        np.testing.assert_array_equal(exact[name], finite[name])


def test_memory_of_the_gradient_is_small() -> None:
    """Far below a state for each token, which autodiff of the recurrence keeps, or a number for each pair of tokens."""
    length, heads, dim = 1024, 4, 32
    arrays = jax.eval_shape(functools.partial(single, inputs(length, "key", heads=heads, groups=heads, dim=dim)))
    program = jax.jit(jax.grad(lambda a: jnp.sum(jnp.square(linear_attention(**a, chunk_size=32)))))
    memory = program.lower(arrays).compile().memory_analysis().temp_size_in_bytes
    assert memory < 2 * length * heads * dim * dim * 4 / 2 <= 2 * heads * length**2 * 4 / 2


def test_low_precision_keeps_a_float32_state() -> None:
    arrays = single(inputs(40, "token"))
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
        ({"k": (2, 5, 2, 4)}, "q and k are (batch, length, groups, key_dim)"),
        ({"v": (2, 5, 3, 8)}, "heads a multiple of groups"),
        ({"decay": (2, 5, 2)}, "decay must have one of the shapes"),
        ({"initial_state": (2, 4, 8, 7)}, "initial_state must be (batch, heads, key_dim, value_dim)"),
        ({"causal": False, "return_state": True}, "drop initial_state and return_state"),
        ({"chunk_size": 48}, "power of two; got 48"),
        ({"value_decay": (2, 5, 4, 8)}, "decay and value_decay are both given; drop one"),
        ({"decay": None, "value_decay": (2, 5, 4, 7)}, "value_decay must have v's shape"),
        ({"backward_decay": (2, 5, 4)}, "backward_decay needs causal=False"),
        ({"causal": False, "exclusive": True}, "exclusive reads only earlier tokens and needs causal=True"),
        ({"bonus": (4, 8)}, "bonus must be (heads, key_dim) = (4, 8), with exclusive=True"),
    ],
)
def test_refusals_say_what_is_wrong(change: dict, message: str) -> None:
    arguments = single(inputs(5, "token"))
    arguments |= {n: jnp.zeros(x) if isinstance(x, tuple) else x for n, x in change.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        linear_attention(**arguments)
