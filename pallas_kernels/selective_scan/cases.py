"""Inputs on which every implementation of the selective scan is tested, timed and tuned."""

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
OPTIONAL = ("D", "gate", "delta_bias", "initial_state")


def _case(
    name: str,
    length: int,
    with_: tuple[str, ...] = (),
    *,
    batch: int = 2,
    channels: int = 6,
    state_dim: int = 4,
    groups: int | None = None,
    starts: tuple[tuple[int, ...], ...] = (),
    change: Change | None = None,
    **options: Any,
) -> Case:
    """Standard normal arrays, negative A, and the optional arrays named in ``with_``; delta is positive unless softplus
    is used or the transition is implicit, which has no A; ``starts`` of documents for each row.
    """
    implicit = options.get("transition") == "implicit"

    def arrays(rng: np.random.Generator) -> Arrays:
        tokens, shared = (batch, length, channels), (batch, length, *([groups] if groups else []), state_dim)
        delta = rng.standard_normal(tokens)
        made = {
            "x": rng.standard_normal(tokens),
            "delta": delta if implicit or options.get("delta_softplus") else 0.5 * np.abs(delta),
            **({} if implicit else {"A": -np.exp(rng.standard_normal((channels, state_dim)))}),
            "B": rng.standard_normal(shared),
            "C": rng.standard_normal(shared),
        }
        shapes = {
            "D": (channels,),
            "gate": tokens,
            "delta_bias": (channels,),
            "initial_state": (batch, channels, state_dim),
        }
        # Non-negative, so that the step is, too, without softplus.
        made |= {
            name: np.abs(rng.standard_normal(shapes[name]))
            if name == "delta_bias"
            else rng.standard_normal(shapes[name])
            for name in with_
        }
        if starts:
            made["starts"] = documents.at(length, *starts)
        if change is not None:
            change(made, rng)
        return made

    return Case(name, arrays, {"A": None, **options} if implicit else options)


def _slow(arrays: Arrays, rng: np.random.Generator) -> None:
    """The state hardly decays: errors of all earlier tokens accumulate."""
    arrays["A"] = 1e-5 * arrays["A"]


def _fast(arrays: Arrays, rng: np.random.Generator) -> None:
    """exp underflows: each token reads only itself."""
    arrays["A"] = 1e4 * arrays["A"]


def _large(arrays: Arrays, rng: np.random.Generator) -> None:
    arrays["x"], arrays["gate"], arrays["delta"] = 1e3 * arrays["x"], 1e2 * arrays["gate"], 1e2 * arrays["delta"]


def _padded_tail(arrays: Arrays, rng: np.random.Generator) -> None:
    arrays["delta"][0, 20:] = 0


def _sure(arrays: Arrays, rng: np.random.Generator) -> None:
    """Large B and steps, so that 1 - e B^2 keeps almost nothing of the state; and padding."""
    arrays["B"], arrays["delta"] = 30 * arrays["B"], 10 * arrays["delta"]
    arrays["delta"][0, 20:] = -np.inf


# Documents that start at the first token, have one token, or start at or next to the border of a chunk of 16.
STARTS = ((0, 5, 6, 15, 16, 33), (9, 32, 36))

# Cases that share one program and differ only in values.
_plain = functools.partial(_case, length=48, with_=("initial_state",), return_state=True)
_packed = functools.partial(_case, length=37, with_=("initial_state",), starts=STARTS, return_state=True)

CASES = (
    _plain("state"),
    _plain("slow", change=_slow),
    _plain("fast", change=_fast),
    _plain("padded_tail", change=_padded_tail),
    _case("everything", 37, OPTIONAL, delta_softplus=True, return_state=True),
    _case("one_token", 1, OPTIONAL, delta_softplus=True, return_state=True),
    _case("many_states", 19, ("initial_state",), channels=3, state_dim=20, return_state=True),
    _case("one_channel_and_state", 19, channels=1, state_dim=1),
    _case("grouped", 37, OPTIONAL, groups=3, delta_softplus=True, return_state=True),
    _case("large", 37, ("gate",), change=_large, delta_softplus=True),
    _packed("packed"),
    _packed("packed_slow", change=_slow),
    _packed("packed_fast", change=_fast),
    _packed("packed_padded", starts=((3, 19), STARTS[0]), change=_padded_tail),
    _case("packed_grouped", 37, OPTIONAL, groups=3, starts=STARTS, delta_softplus=True, return_state=True),
    _case("implicit", 37, OPTIONAL, groups=3, transition="implicit", return_state=True),
    _case("implicit_sure", 37, ("initial_state",), change=_sure, transition="implicit", return_state=True),
    _case("packed_implicit", 37, OPTIONAL, starts=STARTS, transition="implicit", return_state=True),
    _case("packed_one_token", 1, ("initial_state",), starts=((0,), ()), return_state=True),
)


def _shape(name: str, length: int, channels: int, state_dim: int, groups: int | None = None) -> Shape:
    tokens, shared = (2, length, channels), (2, length, *([groups] if groups else []), state_dim)
    wide = jax.ShapeDtypeStruct((channels, state_dim), jnp.float32)
    arrays: Any = {
        "x": tokens,
        "delta": tokens,
        "A": wide,
        "B": shared,
        "C": shared,
        "D": (channels,),
        "gate": tokens,
        "delta_bias": (channels,),
    }
    return Shape(name, arrays, {"delta_softplus": True})


SHAPES = (
    _shape("mamba", 2048, 1536, 16),
    _shape("odd_channels", 1000, 200, 16),
    _shape("many_states", 1024, 512, 32, groups=2),
)
