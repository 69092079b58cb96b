"""Inputs on which every implementation of linear attention is tested, timed and tuned."""

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


def _case(
    name: str,
    length: int,
    decay: str | None = None,
    *,
    batch: int = 2,
    heads: int = 2,
    groups: int | None = None,
    key_dim: int = 8,
    value_dim: int = 8,
    rate: float = 0.3,
    state: bool = False,
    starts: tuple[tuple[int, ...], ...] = (),
    bonus: bool = False,
    backward: bool = False,
    change: Change | None = None,
    **options: Any,
) -> Case:
    """Standard normal arrays and, for ``decay`` of "head", "token", "key" or "value", exponential decays of mean
    ``rate``, with ``backward`` different ones from the right; ``starts`` of documents for each row; then ``change``
    edits them.
    """
    named = "value_decay" if decay == "value" else "decay"
    decays = {
        "head": (heads,),
        "token": (batch, length, heads),
        "key": (batch, length, heads, key_dim),
        "value": (batch, length, heads, value_dim),
    }

    def arrays(rng: np.random.Generator) -> Arrays:
        shared = (batch, length, groups or heads, key_dim)
        made = {
            "q": rng.standard_normal(shared),
            "k": rng.standard_normal(shared),
            "v": rng.standard_normal((batch, length, heads, value_dim)),
        }
        if decay is not None:
            made[named] = -rate * rng.exponential(size=decays[decay])
        if backward:
            made["backward_decay"] = -rate * rng.exponential(size=decays[str(decay)])
        if bonus:
            made["bonus"] = rng.standard_normal((heads, key_dim))
        if state:
            made["initial_state"] = rng.standard_normal((batch, heads, key_dim, value_dim))
        if starts:
            made["starts"] = documents.at(length, *starts)
        if change is not None:
            change(made, rng)
        return made

    return Case(name, arrays, {"chunk_size": 16, **options})


def _correlated_keys(arrays: Arrays, rng: np.random.Generator) -> None:
    arrays["k"] = np.broadcast_to(arrays["k"][:, :1], arrays["k"].shape) + 1e-3 * rng.standard_normal(arrays["k"].shape)


def _abrupt(arrays: Arrays, rng: np.random.Generator) -> None:
    """Most tokens keep nearly everything; a few forget so much that exp underflows and long sums of decays lose the
    smaller terms.
    """
    name = "value_decay" if "value_decay" in arrays else "decay"
    decay = arrays[name]
    arrays[name] = np.where(rng.random(decay.shape) < 0.15, -3e4, 0.01 * decay)


def _large(arrays: Arrays, rng: np.random.Generator) -> None:
    arrays["q"], arrays["k"] = 1e3 * arrays["q"], 1e3 * arrays["k"]


def _padded_tail(arrays: Arrays, rng: np.random.Generator) -> None:
    """The values that a layer passes for trailing padding: k = 0 and decay 0."""
    arrays["k"][0, 20:] = 0
    for name in {"decay", "value_decay"} & arrays.keys():
        arrays[name][0, 20:] = 0


# Documents that start at the first token, have one token, or start at or next to the border of a chunk of 16.
STARTS = ((0, 5, 6, 15, 16, 33), (9, 32, 36))
# Cases that share one program and differ only in values.
_long_token = functools.partial(_case, length=70, decay="token", state=True, return_state=True, chunk_size=64)
_long_key = functools.partial(_case, length=70, decay="key", state=True, return_state=True, chunk_size=64)

CASES = (
    _case("plain", 37, state=True, return_state=True),
    _case("token", 37, "token", state=True, return_state=True),
    _case("one_token_key", 1, "key", groups=1, state=True, return_state=True),
    _case("grouped_key", 21, "key", heads=4, groups=1, state=True, return_state=True),
    _case("grouped_head", 21, "head", heads=4, groups=2, causal=False),
    _case("one_key", 21, "key", key_dim=1, value_dim=4, scale=-0.7),
    _case("both_ways_plain", 37, causal=False),
    _case("both_ways_key", 37, "key", causal=False),
    _long_token("abrupt_token", change=_abrupt),
    _long_token("fast_decay_token", rate=50.0),
    _long_token("large", change=_large),
    _long_key("abrupt_key", change=_abrupt),
    _long_key("correlated_keys_key", rate=0.01, change=_correlated_keys),
    _case("packed", 37, starts=STARTS, state=True, return_state=True),
    _case("packed_head", 48, "head", starts=STARTS, state=True, return_state=True),
    _case("packed_token", 37, "token", heads=4, groups=2, starts=STARTS, state=True, return_state=True),
    _case(
        "packed_padded_key",
        37,
        "key",
        heads=4,
        groups=2,
        starts=((3, 19), STARTS[0]),
        change=_padded_tail,
        state=True,
        return_state=True,
    ),
    _case("packed_chunk_of_one", 5, "key", starts=((0, 2), (3, 4)), state=True, chunk_size=1, return_state=True),
    _case("packed_one_token", 1, "token", starts=((0,), ()), state=True, return_state=True),
    _long_token("packed_abrupt_token", starts=STARTS, change=_abrupt),
    _long_token("packed_fast_decay", starts=STARTS, rate=50.0),
    _long_key("packed_abrupt_key", starts=STARTS, change=_abrupt),
    _case("packed_both_ways_plain", 37, starts=STARTS, causal=False),
    _case("packed_both_ways", 37, "token", starts=STARTS, causal=False),
    _case("packed_both_ways_one_token", 1, "token", starts=((0,), ()), causal=False),
    _case("value", 9, "value", heads=4, groups=2, key_dim=5, value_dim=3, state=True, return_state=True, chunk_size=4),
    _case(
        "packed_abrupt_value",
        70,
        "value",
        starts=STARTS,
        change=_abrupt,
        state=True,
        return_state=True,
        chunk_size=64,
    ),
    _case("both_ways_value", 9, "value", starts=((0, 4), (8,)), causal=False, chunk_size=4),
    _case("two_decays_token", 9, "token", backward=True, causal=False, chunk_size=4),
    _case("two_decays_head", 9, "head", backward=True, starts=((0, 4), (8,)), causal=False),
    _case("two_decays_key", 9, "key", backward=True, starts=((0, 4), (8,)), causal=False, chunk_size=4),
    _case("exclusive", 9, "key", bonus=True, state=True, return_state=True, exclusive=True, chunk_size=4),
    _case(
        "packed_exclusive", 9, "token", groups=1, bonus=True, state=True, starts=STARTS, exclusive=True, chunk_size=4
    ),
    _case("exclusive_one_token", 1, "value", state=True, return_state=True, exclusive=True),
)


def _shape(
    name: str,
    decay: str | None,
    batch: int,
    length: int,
    heads: int,
    groups: int,
    key_dim: int,
    value_dim: int,
    **options: Any,
) -> Shape:
    shared = (batch, length, groups, key_dim)
    arrays: Any = {"q": shared, "k": shared, "v": (batch, length, heads, value_dim)}
    forms: dict[str, dict[str, tuple[int, ...]]] = {
        "token": {"decay": (batch, length, heads)},
        "key": {"decay": (batch, length, heads, key_dim)},
        "value": {"value_decay": (batch, length, heads, value_dim)},
        "two": dict.fromkeys(("decay", "backward_decay"), (batch, length, heads)),
    }
    arrays |= {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in forms.get(str(decay), {}).items()}
    return Shape(name, arrays, options)


SHAPES = (
    _shape("plain", None, 2, 2048, 8, 8, 128, 128),
    _shape("token", "token", 2, 2048, 8, 8, 128, 128),
    _shape("mamba2", "token", 1, 4096, 32, 1, 128, 64, scale=1.0),
    _shape("key", "key", 2, 2048, 4, 4, 128, 256, return_state=True),
    _shape("both_ways", "token", 2, 1000, 8, 8, 64, 64, causal=False),
    _shape("value", "value", 2, 2048, 4, 4, 128, 64, return_state=True),
    _shape("two_decays", "two", 2, 1000, 8, 8, 64, 64, causal=False),
)
