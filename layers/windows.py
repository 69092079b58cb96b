"""Mixing within windows: a grid is cut into local windows or into interleaved lattices, which are mixed separately.

MaxViT (arXiv:2204.01697) is convolution, then :class:`Windowed` attention, then :class:`Grid` attention; Swin
(arXiv:2103.14030) shifts the windows of every second block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.combinators import Around, RowMajor, bidirectional, on_grid
from layers.mixer import MixerSpec, Place, register_mixer
from layers.tokens import Tokens
from primitives import sequence


def _pair(size: Any) -> tuple[Any, Any]:
    return (size, size) if size is None or isinstance(size, int) else tuple(size)


class _Partition(Around):
    """Cuts a grid into groups of ``window`` tokens, mixes inside each group, and puts the tokens back.

    A grid that the window does not divide is padded with masked tokens.
    """

    layouts = ("grid",)
    padding: Literal["masked", "zeros"] = "masked"

    def __init__(
        self,
        features: int,
        *,
        window: int | Sequence[int] = 7,
        inner: MixerSpec = "attention",
        place: Place | None = None,
        rngs: nnx.Rngs,
    ):
        self.window = _pair(window)
        place = None if place is None else dataclasses.replace(place, grid=self._known_window(place.grid))
        self.inner = on_grid(bidirectional(inner, features, rngs=rngs, place=place), features, rngs=rngs)

    @property
    def complexity(self) -> float:
        return 1.0  # the groups have a fixed size

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        batch, height, width = x.shape[:3]
        window = self._window_of((height, width))
        bottom, right = (-size % side for size, side in zip((height, width), window, strict=True))

        def pad(a: jax.Array, value: Any = 0) -> jax.Array:
            return jnp.pad(a, ((0, 0), (0, bottom), (0, right), *[(0, 0)] * (a.ndim - 3)), constant_values=value)

        def cut(a: jax.Array) -> jax.Array:
            return self._cut(jnp.broadcast_to(a, (batch, *a.shape[1:])), window)

        mask = tokens.mask
        if (bottom or right) and (mask is not None or self.padding == "masked"):
            mask = pad(jnp.ones(x.shape[:3], bool) if mask is None else mask, self.padding == "zeros")
        x, tokens = (
            pad(x),
            self._kept_apart(tokens.rearranged(pad).replace(mask=mask), (height + bottom, width + right), window),
        )
        with sequence.folded():
            y = self._join(self.inner(cut(x), tokens.rearranged(cut)), x.shape, window)
        return y[:, :height, :width]

    def _known_window(self, grid: tuple[int, int] | None) -> tuple[int, int] | None:
        """The window size for a grid that may be unknown."""
        return self.window

    def _window_of(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The window size for a grid."""
        return self.window

    def _kept_apart(self, tokens: Tokens, grid: tuple[int, int], window: tuple[int, int]) -> Tokens:
        """``tokens`` of a padded grid, with segment ids that separate tokens that share a window but must not see each
        other.
        """
        return tokens

    def _cut(self, x: jax.Array, window: tuple[int, int]) -> jax.Array:
        raise NotImplementedError

    def _join(self, groups: jax.Array, shape: Sequence[int], window: tuple[int, int]) -> jax.Array:
        raise NotImplementedError


@register_mixer("windowed")
class Windowed(_Partition):
    """The inner mixer in non-overlapping windows of neighboring tokens (MaxViT's block attention, Swin's windows).

    Shifted windows are windows of the cyclically shifted grid: a window at the border holds tokens from two or four
    borders of the grid, which the inner mixer gets as different segments. A side that one window covers is not shifted.
    """

    def __init__(
        self,
        features: int,
        *,
        window: int | None | Sequence[int | None] = 7,
        shift: int | Sequence[int] = 0,
        padding: Literal["masked", "zeros"] = "masked",
        clamp: bool = False,
        inner: MixerSpec = "attention",
        place: Place | None = None,
        rngs: nnx.Rngs,
    ):
        """Args:
          window: rows and columns of a window, or one number for both; None is the whole side of the grid (stripes).
          shift: rows and columns by which the windows are shifted to the bottom and the right.
          padding: padding at the bottom and the right of a grid that the window does not divide: "masked", or "zeros",
            which are attended to as tokens, as Swin's weights were trained.
          clamp: limit windows to the size of the grid. (An inner mixer with a table of offsets needs a fixed window
            size.)

        Raises:
          ValueError: an unknown padding, or a shift around an inner mixer that can't keep segments apart.
        """
        if padding not in ("masked", "zeros"):
            raise ValueError(f'padding is "masked" or "zeros", got {padding!r}')
        self.shift, self.padding, self.clamp = _pair(shift), padding, clamp
        super().__init__(features, window=window, inner=inner, place=place, rngs=rngs)  # type: ignore[arg-type]
        if any(self.shift) and "segment_ids" not in self.inner.honors:
            mixer = self.inner.inner if isinstance(self.inner, RowMajor) else self.inner
            raise ValueError(
                f"a shifted window holds tokens of several sides of the grid, and {type(mixer).__name__} does not "
                "honor segment_ids, "
                "which keep them apart: give shift=0, or an inner mixer that does, such as attention"
            )

    @property
    def complexity(self) -> float:
        # n tokens in windows of m cost n / m * m ** (inner complexity), and a whole side has the square root of n
        # tokens.
        return 1.0 + (self.inner.complexity - 1.0) * sum(side is None for side in self.window) / 2

    def _known_window(self, grid: tuple[int, int] | None) -> tuple[int, int] | None:
        if grid is not None:
            return self._window_of(grid)
        return None if None in self.window else self.window

    def _window_of(self, grid: tuple[int, int]) -> tuple[int, int]:
        rows, columns = (
            size if side is None else min(side, size) if self.clamp else side
            for side, size in zip(self.window, grid, strict=True)
        )
        return rows, columns

    def _shift_of(self, grid: Sequence[int], window: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns by which the windows of a padded grid are moved."""
        rows, columns = (
            0 if side >= size else shift for shift, size, side in zip(self.shift, grid, window, strict=True)
        )
        return rows, columns

    def _kept_apart(self, tokens: Tokens, grid: tuple[int, int], window: tuple[int, int]) -> Tokens:
        if not any(shift := self._shift_of(grid, window)):
            return tokens
        # Rows and columns that wrap around belong to other sides: four segments for each document.
        rows, columns = (np.arange(size) < moved for size, moved in zip(grid, shift, strict=True))
        sides = jnp.asarray(2 * rows[:, None] + columns, jnp.int32)[None]
        known = tokens.segment_ids
        return tokens.replace(segment_ids=sides if known is None else 4 * known + sides)

    def _cut(self, x: jax.Array, window: tuple[int, int]) -> jax.Array:
        (batch, height, width), (rows, columns) = x.shape[:3], window
        x = self._moved(x, window, -1).reshape(batch, height // rows, rows, width // columns, columns, *x.shape[3:])
        return jnp.swapaxes(x, 2, 3).reshape(-1, rows, columns, *x.shape[5:])

    def _join(self, groups: jax.Array, shape: Sequence[int], window: tuple[int, int]) -> jax.Array:
        (batch, height, width), (rows, columns) = shape[:3], window
        x = groups.reshape(batch, height // rows, width // columns, rows, columns, -1)
        return self._moved(jnp.swapaxes(x, 2, 3).reshape(shape), window, 1)

    def _moved(self, x: jax.Array, window: tuple[int, int], direction: int) -> jax.Array:
        shift = self._shift_of(x.shape[1:3], window)
        return jnp.roll(x, tuple(direction * moved for moved in shift), (1, 2)) if any(shift) else x


@register_mixer("grid")
class Grid(_Partition):
    """The inner mixer in groups of ``window`` tokens, evenly spaced over the whole grid (MaxViT's grid attention)."""

    paper = (34,)

    def _cut(self, x: jax.Array, window: tuple[int, int]) -> jax.Array:
        (batch, height, width), (rows, columns) = x.shape[:3], window
        x = x.reshape(batch, rows, height // rows, columns, width // columns, *x.shape[3:])
        return jnp.moveaxis(x, (2, 4), (1, 2)).reshape(-1, rows, columns, *x.shape[5:])

    def _join(self, groups: jax.Array, shape: Sequence[int], window: tuple[int, int]) -> jax.Array:
        (batch, height, width), (rows, columns) = shape[:3], window
        x = groups.reshape(batch, height // rows, width // columns, rows, columns, -1)
        return jnp.moveaxis(x, (1, 2), (2, 4)).reshape(shape)
