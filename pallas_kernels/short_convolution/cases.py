"""Inputs on which every implementation and form of the short convolution is tested."""

from __future__ import annotations

from typing import Any

import numpy as np

from pallas_kernels import documents
from pallas_kernels.dispatch import Case

Arrays = dict[str, np.ndarray]


def _case(
    name: str,
    length: int,
    size: int,
    *with_: str,
    lengths: tuple[int, ...] = (),
    starts: tuple[tuple[int, ...], ...] = (),
    scale: float = 1.0,
    offset: float = 0.0,
    **options: Any,
) -> Case:
    """Standard normal arrays and the optional ones named in ``with_``, where "each" is a kernel for each row;
    ``lengths`` of rows make a mask, ``starts`` documents.
    """
    batch, channels = 2, 3

    def arrays(rng: np.random.Generator) -> Arrays:
        made: Arrays = {
            "x": offset + scale * rng.standard_normal((batch, length, channels)),
            "kernel": rng.standard_normal((*([batch] if "each" in with_ else []), size, 1, channels)),
        }
        if "bias" in with_:
            made["bias"] = rng.standard_normal(channels)
        if "state" in with_:
            made["state"] = rng.standard_normal((batch, size - 1, channels))
        if lengths:
            made["mask"] = np.arange(length) < np.asarray(lengths)[:, None]
            made["x"][~made["mask"]] = np.nan
        if starts:
            made["starts"] = documents.at(length, *starts)
        return made

    return Case(name, arrays, options)


CASES = (
    _case("plain", 11, 4),
    _case("everything", 11, 4, "bias", "state", lengths=(11, 6), return_state=True),
    _case("state_in", 9, 4, "state"),
    _case("state_out", 9, 4, return_state=True),
    _case("below_kernel", 2, 4, "bias", "state", return_state=True),
    _case("one_token", 1, 4, "bias", "state", return_state=True),
    _case("one_tap", 5, 1, "bias", return_state=True),
    _case("several_blocks", 70, 3, "bias", "state", return_state=True),
    _case("centered", 10, 5, "bias", causal=False),
    _case("centered_even", 9, 4, causal=False),
    _case("centered_masked", 9, 3, causal=False, lengths=(9, 4)),
    _case("centered_beyond_input", 2, 9, causal=False),
    _case("each", 8, 4, "each", "bias", "state", return_state=True),
    _case("many_taps", 40, 33),
    _case("packed", 19, 4, "bias", "state", starts=((0, 5, 6, 7, 13), (2, 11)), return_state=True),
    _case("packed_padded", 19, 4, "state", lengths=(17, 8), starts=((3, 16), (1,)), return_state=True),
    _case("packed_each", 9, 3, "each", "state", starts=((4,), ()), return_state=True),
    _case("packed_one_token", 1, 4, "bias", "state", starts=((0,), ()), return_state=True),
    _case("packed_centered", 19, 5, starts=((0, 5, 6, 7, 13), (2, 18)), causal=False),
    _case("packed_centered_beyond_input", 3, 9, starts=((1,), (2,)), causal=False),
    _case("packed_many_taps", 40, 33, starts=((7, 30), (39,)), return_state=True),
    _case("large_offset", 20, 4, "bias", offset=1e3),
)
