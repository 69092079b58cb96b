"""Inputs on which every implementation of the elementwise linear recurrence is tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pallas_kernels import documents
from pallas_kernels.dispatch import Case

Arrays = dict[str, np.ndarray]
OPTIONAL = ("decay", "initial_state")


def _case(
    name: str,
    length: int,
    *with_: str,
    starts: tuple[tuple[int, ...], ...] = (),
    change: Callable[[Arrays], None] | None = None,
    **options: Any,
) -> Case:
    """Standard normal arrays with negative decays, and the optional arrays named in ``with_``; ``starts`` of documents
    for each row.
    """
    batch, channels = 2, 3

    def arrays(rng: np.random.Generator) -> Arrays:
        made: Arrays = {"x": rng.standard_normal((batch, length, channels))}
        if "decay" in with_:
            made["decay"] = -np.abs(rng.standard_normal((batch, length, channels)))
        if "initial_state" in with_:
            made["initial_state"] = rng.standard_normal((batch, channels))
        if starts:
            made["starts"] = documents.at(length, *starts)
        if change is not None:
            change(made)
        return made

    return Case(name, arrays, options)


def _slow(arrays: Arrays) -> None:
    """The state hardly decays: errors of all earlier tokens accumulate."""
    arrays["decay"] = 1e-5 * arrays["decay"]


def _abrupt(arrays: Arrays) -> None:
    """Some factors are above 1, some nearly 0, and some exactly 0."""
    arrays["decay"][:, 1::7] *= -0.1
    arrays["decay"][:, 4::5] = -1e4
    arrays["decay"][:, 2::3] = -np.inf


def _padded_tail(arrays: Arrays) -> None:
    arrays["x"][0, 9:] = 0
    arrays["decay"][0, 9:] = 0


# Documents that start at the first token, have one token, or consist of the last token.
STARTS = ((0, 5, 6, 15), (9, 18))

CASES = (
    _case("everything", 19, *OPTIONAL, return_state=True),
    _case("sum", 19, "initial_state", return_state=True),
    _case("reverse", 19, *OPTIONAL, reverse=True, return_state=True),
    _case("packed", 19, *OPTIONAL, starts=STARTS, return_state=True),
    _case("alone", 12),
    _case("slow", 60, *OPTIONAL, change=_slow, return_state=True),
    _case("abrupt", 19, *OPTIONAL, change=_abrupt, return_state=True),
    _case("padded_tail", 19, *OPTIONAL, change=_padded_tail, return_state=True),
    _case("one_token", 1, *OPTIONAL, return_state=True),
    _case("packed_sum", 19, "initial_state", starts=STARTS, return_state=True),
    _case("packed_one_token", 1, *OPTIONAL, starts=((0,), ()), return_state=True),
)
