"""The Hopper kernels of the recurrences, interpreted with their copies and barriers: outputs and all gradients against
the reference.

The truth is the reference in float64 on the inputs as the kernel gets them: rounded to bfloat16 where its products take
  16 bits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import hopper
from pallas_kernels.dispatch import OPS, use
from pallas_kernels.linear_attention import hopper_chunks, hopper_pieces

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(hopper.interpreter_missing() is not None, reason=str(hopper.interpreter_missing())),
]

# Half a unit in the last place of bfloat16 is 2^-9. Rounded are scores, states that are read, values that are written,
# inverses, cotangents and results: six times, if all fall together.
SIXTEEN_BITS = 6 * 2.0**-9
FLOAT32 = 2e-6


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Arrays by name, those of ``narrow`` in bfloat16, and the op's options."""

    arrays: dict[str, np.ndarray]
    options: dict[str, Any]
    narrow: tuple[str, ...] = ()

    def cast(self, wide: Any, narrow: Any) -> dict[str, jax.Array]:
        rounded = {
            n: np.asarray(jnp.asarray(x, jnp.bfloat16 if n in self.narrow else jnp.float32), np.float64)
            for n, x in self.arrays.items()
        }
        return {n: jnp.asarray(x, narrow if n in self.narrow else wide) for n, x in rounded.items()}


def shared_case(op: str, name: str, narrow: tuple[str, ...] = ()) -> Inputs:
    case = next(c for c in OPS[op].cases if c.name == name)
    return Inputs(case.arrays(np.random.default_rng(0)), case.options, narrow)


def long(op: str, key_dim: int, decay_dim: int = 0) -> Inputs:
    """Three chunks, one not full, shared queries and keys, states in and out; decays per key with ``decay_dim``."""
    rng = np.random.default_rng(0)
    k = rng.standard_normal((1, 150, 1, key_dim))
    arrays = {
        "q": rng.standard_normal((1, 150, 1, key_dim)), "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": rng.standard_normal((1, 150, 2, 8)),
        "decay": -0.1 * rng.exponential(size=(1, 150, 2, *([decay_dim] if decay_dim else []))),
        "initial_state": rng.standard_normal((1, 2, key_dim, 8)),
    }  # fmt: skip
    if op == "delta_rule":
        arrays["beta"] = 2 * rng.random((1, 150, 2))
    return Inputs(arrays, {"return_state": True}, ("q", "k", "v"))


def gradients(call: Callable[..., Any], arrays: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Outputs and, under one random cotangent, gradients."""

    @jax.jit
    def run(arrays: dict[str, jax.Array], cotangents: list[jax.Array]) -> Any:
        outputs, pull = jax.vjp(lambda a: jax.tree.leaves(call(**a)), arrays)
        return outputs, pull(cotangents)[0]

    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda a: jax.tree.leaves(call(**a)), arrays)
    cotangents = [jnp.asarray(jnp.asarray(rng.standard_normal(s.shape), jnp.bfloat16), s.dtype) for s in shapes]
    outputs, found = run(arrays, cotangents)
    named = {f"output {i}": x for i, x in enumerate(outputs)} | found
    return {n: np.asarray(x, np.float64) for n, x in named.items()}


def check(op: str, inputs: Inputs, tolerance: float) -> None:
    call = functools.partial(getattr(pallas_kernels, op), **inputs.options)
    with jax.enable_x64(True), use("reference"):
        want = gradients(call, inputs.cast(jnp.float64, jnp.float64))
    with hopper.interpreted(detect_races=True), use("mosaic_gpu"):
        got = gradients(call, inputs.cast(jnp.float32, jnp.bfloat16))
    assert got.keys() == want.keys()
    for name, exact in want.items():
        error, scale = np.max(np.abs(got[name] - exact)), np.max(np.abs(exact))
        assert error <= tolerance * scale, f"{name}: {error / scale:.2g} of its largest, allowed {tolerance:.2g}"


@pytest.mark.parametrize("name", ["plain", "abrupt_token", "grouped_head"])
def test_linear_attention(name: str) -> None:
    check("linear_attention", shared_case("linear_attention", name, ("q", "k", "v")), SIXTEEN_BITS)


def test_pieces_of_a_sequence_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper_pieces, "SHORTEST", 1)
    inputs = long("linear_attention", 8)
    assert hopper_pieces.count(1, 150, 2, 8, 8) == 2
    check("linear_attention", inputs, SIXTEEN_BITS)


def test_several_steps_of_the_delta_rule() -> None:
    check("delta_rule", shared_case("delta_rule", "three_steps_gated", ("q", "k", "v")), SIXTEEN_BITS)


def test_reflections_do_not_multiply_what_is_rounded() -> None:
    """Every step reflects one key and nothing is forgotten: two chunks, after which inverses rounded to 16 bits are 13
    to 45 % off.
    """
    length, rng = 2 * hopper_chunks.CHUNK, np.random.default_rng(0)
    k = rng.standard_normal((1, 1, 1, 8))
    arrays = {name: rng.standard_normal((1, length, 1, 8)) for name in ("q", "v")} | {
        "initial_state": rng.standard_normal((1, 1, 8, 8))
    }
    arrays |= {"k": np.repeat(k / np.linalg.norm(k), length, 1), "beta": np.full((1, length, 1), 2.0)}
    # What each step reads, holds and adds is rounded, and twice the first is added: a random walk.
    check("delta_rule", Inputs(arrays, {"return_state": True}, ("q", "k", "v")), 4 * length**0.5 * 2.0**-9)


def test_the_delta_rule_is_as_right_after_many_chunks_as_after_few() -> None:
    """Nothing decays; the cotangent of the state is a difference of two sums, each of which grows with the length: 2.3
    % of k's gradient here.
    """
    length, rng = 16 * hopper_chunks.CHUNK, np.random.default_rng(0)
    k = rng.standard_normal((1, length, 1, 8))
    arrays = {name: rng.standard_normal((1, length, 1, 8)) for name in ("q", "v")}
    arrays |= {"k": k / np.linalg.norm(k, axis=-1, keepdims=True), "beta": rng.random((1, length, 1))}
    check("delta_rule", Inputs(arrays, {}, ("q", "k", "v")), SIXTEEN_BITS)


@pytest.mark.parametrize(
    ("op", "dims"), [("linear_attention", (130,)), ("linear_attention", (8, 8)), ("delta_rule", (8,))]
)
def test_states_meet_between_segments(op: str, dims: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper_chunks, "SEGMENT", 1)
    check(op, long(op, *dims), SIXTEEN_BITS)


@pytest.mark.parametrize("name", ["grouped", "many_states"])
def test_selective_scan(name: str) -> None:
    check("selective_scan", shared_case("selective_scan", name), FLOAT32)
