"""Inputs on which every implementation and form of the depth-wise convolution is tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pallas_kernels.dispatch import Case

Arrays = dict[str, np.ndarray]


def _case(
    name: str,
    size: tuple[int, int],
    kernel: tuple[int, int],
    *,
    batch: int = 2,
    channels: int = 3,
    bias: bool = False,
    each: bool = False,
    change: Callable[[Arrays], None] | None = None,
    **options: Any,
) -> Case:
    """Standard normal arrays; ``each`` makes a kernel for each example."""

    def arrays(rng: np.random.Generator) -> Arrays:
        made = {
            "x": rng.standard_normal((batch, *size, channels)),
            "kernel": rng.standard_normal((*([batch] if each else []), *kernel, 1, channels)),
        }
        if bias:
            made["bias"] = rng.standard_normal(channels)
        if change is not None:
            change(made)
        return made

    return Case(name, arrays, options)


def _offset(arrays: Arrays) -> None:
    """Values with a large common offset, and a kernel that takes differences: most of every sum cancels."""
    arrays["x"] = 1e3 + arrays["x"]
    arrays["kernel"] -= arrays["kernel"].mean((0, 1), keepdims=True)


def _correlated(arrays: Arrays) -> None:
    """A kernel and a map of slow waves, whose products all have the same sign."""
    for name, axes in (("x", (1, 2)), ("kernel", (0, 1))):
        rows, columns = (np.arange(arrays[name].shape[axis]) for axis in axes)
        wave = np.cos(0.1 * (rows[:, None] + columns))[..., None]
        arrays[name] = arrays[name] * 0.01 + (wave if name == "x" else wave[:, :, None])


def _peaks(arrays: Arrays) -> None:
    """One position a million times as large as the others."""
    arrays["x"][:, 3, 4] *= 1e6


CASES = (
    _case("plain", (7, 6), (3, 3)),
    _case("bias", (5, 6), (3, 3), bias=True),
    _case("odd_kernel", (6, 9), (5, 2), padding=((1, 3), (0, 1))),
    _case("strided", (9, 10), (3, 3), strides=2, padding="same"),
    _case("strides_apart", (9, 10), (4, 3), strides=(3, 2), padding=((0, 2), (1, 0))),
    _case("strides_over_kernel", (7, 8), (1, 2), strides=3, padding=((0, 0), (0, 0))),
    _case("dilated", (9, 8), (3, 2), dilation=(2, 3), padding=((2, 1), (0, 3))),
    _case("dilated_strided", (11, 8), (3, 3), strides=2, dilation=(3, 2), padding="same"),
    _case("no_padding", (8, 7), (7, 7), padding=((0, 0), (0, 0))),
    _case("wide_padding", (3, 4), (2, 2), padding=((4, 0), (1, 5))),
    _case("larger_than_input", (3, 5), (9, 11)),
    _case("one_position", (1, 1), (3, 3)),
    _case("one_tap", (5, 4), (1, 1)),
    _case("several_blocks", (5, 70), (3, 5), batch=1),
    _case("many_taps", (12, 13), (13, 13), batch=1),
    _case("each", (6, 5), (3, 3), each=True, strides=2),
    _case("large_offset", (12, 14), (5, 5), change=_offset),
    _case("correlated", (12, 14), (7, 7), change=_correlated),
    _case("peaks", (12, 14), (5, 5), change=_peaks),
)
