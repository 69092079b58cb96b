"""Inputs on which every implementation of neighborhood attention is tested, and calls of realistic size."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import Case, Shape

Arrays = dict[str, np.ndarray]


def _case(
    name: str,
    *grid: int,
    heads: int = 2,
    kv_heads: int | None = None,
    value_dim: int = 6,
    bias: bool = False,
    padding: bool = False,
    **options: Any,
) -> Case:
    window = options["kernel_size"]

    def arrays(rng: np.random.Generator) -> Arrays:
        keys = (2, *grid, kv_heads or heads)
        shapes = {"q": (2, *grid, heads, 4), "k": (*keys, 4), "v": (*keys, value_dim)}
        made: dict[str, Any] = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
        if bias:
            sides = window if isinstance(window, tuple) else (window,) * len(grid)
            made["bias"] = rng.standard_normal((heads, *(2 * side - 1 for side in sides)))
        if padding:
            mask = rng.random((2, *grid)) < 0.6
            mask[1] = False
            for which in ("k", "v"):
                made[which][~mask] = np.nan
            made["q"][1] = np.nan
            made["mask"] = mask
        return made

    return Case(name, arrays, options)


CASES = (
    _case("line", 13, kernel_size=5),
    _case("line_strides", 21, kernel_size=6, stride=4, dilation=2),
    _case("map", 9, 11, kernel_size=(3, 5), bias=True),
    _case("map_padding", 9, 7, kernel_size=3, padding=True, border="masked", bias=True),
    _case("line_causal", 19, kernel_size=4, causal=True, dilation=3),
    _case("line_even", 10, kernel_size=4, border="masked"),
    _case("map_windows", 8, 12, kernel_size=4, stride=4),
    _case("map_dilated", 19, 14, kernel_size=(3, 4), dilation=(3, 2), stride=(2, 1), scale=0.3),
    _case("map_causal", 6, 9, heads=4, kv_heads=2, kernel_size=(3, 4), causal=(True, False), stride=(2, 3)),
    _case("volume_padding", 3, 4, 5, kernel_size=(2, 2, 3), stride=(2, 1, 2), dilation=(1, 2, 1),
        causal=(False, False, True), padding=True),
    _case("volume", 4, 5, 6, kernel_size=(3, 2, 3), causal=(True, False, False), bias=True),
)  # fmt: skip


def _shape(name: str, *shape: int, mask: bool = False, **options: Any) -> Shape:
    arrays: dict[str, Any] = dict.fromkeys("qkv", shape)
    if mask:
        arrays["mask"] = jax.ShapeDtypeStruct(shape[:-2], jnp.bool_)
    return Shape(name, arrays, options)


SHAPES = (
    _shape("map", 2, 56, 56, 4, 32, kernel_size=7),
    # As many tokens as a video model has, with strides at which no block is cut.
    _shape("volume_strides", 1, 30, 48, 80, 8, 128, kernel_size=(18, 24, 24), stride=(16, 8, 8)),
    _shape("line_padding", 2, 16384, 8, 64, mask=True, kernel_size=255, dilation=4, causal=True),
)
