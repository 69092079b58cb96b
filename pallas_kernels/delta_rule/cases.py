"""Inputs on which every implementation of the delta rule is tested, timed and tuned."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import documents
from pallas_kernels.dispatch import Case, Shape

Arrays = dict[str, np.ndarray]
Change = Callable[[Arrays, np.random.Generator], None]
Read = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _case(
    name: str,
    length: int,
    *,
    steps: int = 1,
    batch: int = 2,
    heads: int = 2,
    groups: int | None = None,
    key_dim: int = 8,
    value_dim: int = 8,
    rate: float | None = None,
    per_key: bool = False,
    read: Read | None = None,
    strongest: float = 1.0,
    state: bool = False,
    starts: tuple[tuple[int, ...], ...] = (),
    change: Change | None = None,
    **options: Any,
) -> Case:
    """Keys of norm 1, beta uniform up to ``strongest``, exponential decays of mean ``rate`` if given, per key dimension
    if ``per_key``; read keys made from the keys by ``read``; ``starts`` of documents for each row; then ``change``
    edits them.
    """

    def arrays(rng: np.random.Generator) -> Arrays:
        k = rng.standard_normal((batch, length * steps, groups or heads, key_dim))
        made = {
            "q": rng.standard_normal((batch, length, groups or heads, key_dim)),
            "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
            "v": rng.standard_normal((batch, length * steps, heads, value_dim)),
            "beta": strongest * rng.random((batch, length * steps, heads)),
        }
        if rate is not None:
            made["decay"] = -rate * rng.exponential(size=(batch, length, heads, *((key_dim,) if per_key else ())))
        if read is not None:
            made["read_key"] = read(made["k"], rng)
        if state:
            made["initial_state"] = rng.standard_normal((batch, heads, key_dim, value_dim))
        if starts:
            made["starts"] = documents.at(length, *starts)
        if change is not None:
            change(made, rng)
        return made

    return Case(name, arrays, {"chunk_size": 16, **options})


def _identical_keys(arrays: Arrays, rng: np.random.Generator) -> None:
    arrays["k"] = np.broadcast_to(arrays["k"][:, :1], arrays["k"].shape)


def _parallel_keys(arrays: Arrays, rng: np.random.Generator) -> None:
    k = arrays["k"][:, :1] + 1e-3 * rng.standard_normal(arrays["k"].shape)
    arrays["k"] = k / np.linalg.norm(k, axis=-1, keepdims=True)


def _reflections(arrays: Arrays, rng: np.random.Generator) -> None:
    """Every transition is orthogonal: nothing is forgotten."""
    arrays["beta"] = np.full(arrays["beta"].shape, 2.0)


def _alike_and_reflecting(arrays: Arrays, rng: np.random.Generator) -> None:
    _identical_keys(arrays, rng)
    _reflections(arrays, rng)


def _abrupt(arrays: Arrays, rng: np.random.Generator) -> None:
    """Most tokens keep nearly everything; a few forget so much that exp underflows and long sums of decays lose the
    smaller terms.
    """
    decay = arrays["decay"]
    arrays["decay"] = np.where(rng.random(decay.shape) < 0.15, -3e4, 0.01 * decay)


def _large(arrays: Arrays, rng: np.random.Generator) -> None:
    arrays["q"], arrays["v"] = 1e3 * arrays["q"], 1e3 * arrays["v"]


def _padded_tail(arrays: Arrays, rng: np.random.Generator) -> None:
    """The values that a layer passes for trailing padding: beta 0 and decay 0."""
    arrays["beta"][0, 20:] = 0
    arrays["decay"][0, 20:] = 0


def _down_to_five(arrays: Arrays, rng: np.random.Generator) -> None:
    """KDA's safe gate: log decays from 0 to -5 per key dimension; and one token that forgets one of them completely."""
    arrays["decay"] = -5 * rng.random(arrays["decay"].shape)
    arrays["decay"][0, 3, 0, 0] = -np.inf


def _hard(arrays: Arrays, rng: np.random.Generator) -> None:
    """All difficulties at once: identical keys, reflections, decays from 0 to -5."""
    _alike_and_reflecting(arrays, rng)
    arrays["decay"] = np.where(rng.random(arrays["decay"].shape) < 0.5, 0, -5 * rng.random(arrays["decay"].shape))


def _shorter(k: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Comba's read keys, in the direction of the keys."""
    return 0.6 * k


def _of_other_direction(k: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    read = k + 0.5 * rng.standard_normal(k.shape)
    return read / np.linalg.norm(read, axis=-1, keepdims=True)


def _erase_then_write(arrays: Arrays, rng: np.random.Generator) -> None:
    """RWKV-7's two steps per token: a removal that reads the state before the decay, and a write that reads nothing."""
    batch, length, heads, key_dim = arrays["decay"].shape
    arrays["decay"] = -np.exp(-0.5) * rng.random(arrays["decay"].shape)
    pairs = arrays["k"].reshape(batch, length, 2, heads, key_dim)
    removed = pairs[:, :, 0].copy()
    pairs[:, :, 0] *= rng.random((batch, length, heads, 1))
    read = np.zeros_like(pairs)
    read[:, :, 0] = removed / np.exp(arrays["decay"])
    arrays["read_key"] = read.reshape(arrays["k"].shape)
    arrays["v"].reshape(batch, length, 2, heads, -1)[:, :, 0] = 0
    arrays["beta"] = np.ones(arrays["beta"].shape)


# Documents that start at the first token, have one token, or start at or next to the border of a chunk of 16.
STARTS = ((0, 5, 6, 15, 16, 33), (9, 32, 36))
# Cases that share one program and differ only in values.
_gated = functools.partial(_case, length=37, rate=0.3, state=True, return_state=True)
_long = functools.partial(_case, length=70, state=True, return_state=True, chunk_size=64)
_long_gated = functools.partial(_long, length=150, rate=0.3)
_long_steps = functools.partial(_long, steps=2)
_long_key = functools.partial(_long, rate=0.3, per_key=True)
_key_read = functools.partial(_gated, per_key=True)
_packed = functools.partial(_long, rate=0.3, starts=STARTS)

CASES = (
    _case("plain", 37, state=True, return_state=True),
    _gated("gated"),
    _gated("negative_eigenvalues", strongest=2.0),
    _case("three_steps_gated", 21, steps=3, strongest=2.0, rate=0.3, state=True, return_state=True),
    _case("more_steps_than_chunk", 3, steps=5, rate=0.3, chunk_size=4, state=True, return_state=True),
    _case("one_token_three_steps", 1, steps=3, rate=0.3, state=True, return_state=True),
    _case("grouped", 37, rate=0.3, heads=6, groups=2, state=True, change=_padded_tail, return_state=True),
    _case("unequal_dims", 21, rate=0.3, key_dim=5, value_dim=3, scale=1.0),
    _long("identical_keys", change=_identical_keys),
    _long("parallel_keys", strongest=2.0, change=_parallel_keys),
    _long("one_reflection_repeated", change=_alike_and_reflecting),
    _long_gated("identical_keys_beyond_one", strongest=2.0, rate=0.01, change=_identical_keys),
    _long_gated("long_decay", rate=1e-3),
    _long_gated("abrupt", change=_abrupt),
    _long_gated("fast_decay", rate=50.0),
    _long_gated("large", change=_large),
    _long_steps("parallel_keys_steps", strongest=2.0, change=_parallel_keys),
    _long_steps("reflections", change=_reflections),
    _case("key", 37, rate=0.3, per_key=True, heads=4, groups=2, state=True, return_state=True),
    _long_key("key_down_to_five", strongest=2.0, change=_down_to_five),
    _long_key("key_hard", change=_hard),
    _long_key("key_abrupt", change=_abrupt),
    _case("key_one_token", 1, rate=0.3, per_key=True, steps=2, read=_shorter, state=True, return_state=True),
    _key_read("key_read", read=_of_other_direction),
    _key_read("key_padded_tail", read=_shorter, change=_padded_tail),
    _case("read", 32, rate=0.3, read=_shorter, heads=4, groups=2, state=True, return_state=True),
    _case("read_plain", 21, steps=2, read=_of_other_direction, state=True, return_state=True),
    _case("erase_then_write", 19, steps=2, rate=0.3, per_key=True, change=_erase_then_write, return_state=True),
    _case("packed", 37, heads=4, groups=2, strongest=2.0, starts=STARTS, state=True, return_state=True),
    _case(
        "packed_two_steps",
        21,
        steps=2,
        strongest=2.0,
        rate=0.3,
        starts=((0, 7, 8, 9, 16), (20,)),
        state=True,
        return_state=True,
    ),
    _case(
        "packed_three_steps", 21, steps=3, strongest=2.0, starts=((0, 5, 6, 15), (10,)), state=True, return_state=True
    ),
    _case(
        "packed_key_two_steps",
        21,
        steps=2,
        rate=0.3,
        per_key=True,
        read=_shorter,
        starts=((0, 7, 8, 9, 16), (20,)),
        state=True,
        return_state=True,
    ),
    _case("packed_one_token", 1, steps=2, rate=0.3, starts=((0,), ()), state=True, return_state=True),
    _packed("packed_identical_keys", strongest=2.0, rate=0.01, change=_identical_keys),
    _packed("packed_abrupt", change=_abrupt),
    _packed("packed_padded", starts=((3, 19), STARTS[0]), change=_padded_tail),
)


def _shape(
    name: str,
    length: int,
    heads: int,
    groups: int,
    key_dim: int,
    value_dim: int,
    steps: int = 1,
    gated: bool = False,
    per_key: bool = False,
    read: bool = False,
) -> Shape:
    keys = (2, length * steps, groups, key_dim)
    arrays: Any = {
        "q": (2, length, groups, key_dim),
        "k": keys,
        "v": (2, length * steps, heads, value_dim),
        "beta": (2, length * steps, heads),
    }
    if gated:
        arrays["decay"] = jax.ShapeDtypeStruct((2, length, heads, *((key_dim,) if per_key else ())), jnp.float32)
    if read:
        arrays["read_key"] = keys
    return Shape(name, arrays, {"return_state": True})


SHAPES = (
    _shape("plain", 2048, 8, 8, 128, 128),
    _shape("gated", 2048, 6, 6, 256, 256, gated=True),
    _shape("gated_grouped", 2048, 32, 16, 128, 128, gated=True),
    _shape("two_steps", 1024, 8, 8, 64, 64, steps=2),
    _shape("key", 2048, 16, 16, 128, 128, gated=True, per_key=True),
    _shape("read", 2048, 6, 6, 256, 256, gated=True, read=True),
)
