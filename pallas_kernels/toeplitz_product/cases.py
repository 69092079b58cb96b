"""Inputs on which every implementation of the Toeplitz product is tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pallas_kernels.dispatch import Case

Arrays = dict[str, np.ndarray]


def _case(
    name: str, length: int, groups: int, *, change: Callable[[Arrays], None] | None = None, **options: Any
) -> Case:
    """Standard normal arrays, which ``change`` edits."""

    def arrays(rng: np.random.Generator) -> Arrays:
        offsets = length if options.get("causal", True) else 2 * length - 1
        made = {"x": rng.standard_normal((2, length, 4)), "kernel": rng.standard_normal((offsets, groups))}
        if change is not None:
            change(made)
        return made

    return Case(name, arrays, options)


def _wide_range(arrays: Arrays) -> None:
    """Coefficients e^b with b between -10 and 10: the small ones are lost in the rounding of the large ones."""
    arrays["kernel"] = np.exp(5 * np.clip(arrays["kernel"], -2, 2))


CASES = (
    _case("long", 67, 4),
    _case("short", 7, 2),
    _case("long_both_ways", 100, 2, causal=False),
    _case("short_both_ways", 6, 4, causal=False),
    _case("power_of_two", 128, 1, causal=False),
    _case("wide_range", 67, 2, change=_wide_range, causal=False),
    _case("one_token", 1, 4),
    _case("one_token_both_ways", 1, 1, causal=False),
)
