"""What is known of the tokens besides their features: one object that is passed to backbones, blocks and mixers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class Kept:
    """The cells of tokens on their last grid, after a reduction has left only some of them.

    Attributes:
      cells: int32, (batch or 1, length, 2), row and column of each token on that grid, 0 in the prefix.
      grid: rows and columns of that grid.
      prefix: number of tokens before those of the grid.
    """

    cells: jax.Array
    grid: tuple[int, int] = struct.field(pytree_node=False)
    prefix: int = struct.field(pytree_node=False, default=0)


@struct.dataclass
class Tokens:
    """What is known of the tokens that a mixer is given; None means unknown.

    Shapes are given for sequences, (batch, length); for grids (batch, height, width) takes their place.

    Attributes:
      mask: bool, True = real token. The padding of a sequence is trailing.
      positions: int32, (batch or 1, length), or (batch or 1, length, axes) for tokens of a grid.
      segment_ids: int32, equal for the tokens of one document, which are contiguous; tokens see their own document
        only.
      roles: int32, the role of a token for mixers that use roles, such as a global token of Longformer.
      context: (batch, context_length, context_features), the input of keys and values in cross attention.
      context_mask: bool (batch, context_length), True = real.
      grid: rows and columns of the tokens of an image in row-major order. The tokens before them in the sequence are
        the prefix. A mixer that does not use the grid may ignore it.
      kept: replaces ``grid`` after a :class:`layers.reduction.TokenReduction` that leaves no grid: the cells of the
        remaining tokens on the last grid. It may be ignored too.
    """

    mask: jax.Array | None = None
    positions: jax.Array | None = None
    segment_ids: jax.Array | None = None
    roles: jax.Array | None = None
    context: jax.Array | None = None
    context_mask: jax.Array | None = None
    grid: tuple[int, int] | None = struct.field(pytree_node=False, default=None)
    kept: Kept | None = None

    @classmethod
    def of(cls, known: Known) -> Tokens:
        """``known`` itself, or an object with ``known`` as its mask; None gives an object without any field."""
        return known if isinstance(known, Tokens) else cls(mask=known)

    def given(self) -> frozenset[str]:
        """Names of the known fields that a mixer must honor: all except ``grid`` and ``kept``."""
        return frozenset(name for name in FIELDS if getattr(self, name) is not None)

    def replace(self, **changes: Any) -> Tokens:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def without(self, *names: str) -> Tokens:
        """A copy with the fields ``names`` set to None."""
        return self.replace(**dict.fromkeys(names))

    def rearranged(self, move: Callable[[jax.Array], jax.Array], grid: tuple[int, int] | None = None) -> Tokens:
        """A copy with ``move`` applied to all per-token fields (batch, length, ...), which changes their order or
        shape.

        ``grid`` is the grid of the new order. Positions shared by all rows are moved with their batch axis of 1.
        """
        moved = {name: move(value) for name in PER_TOKEN if (value := getattr(self, name)) is not None}
        kept = (
            None
            if self.kept is None or grid is not None
            else dataclasses.replace(self.kept, cells=move(self.kept.cells))
        )
        return self.replace(**moved, grid=grid, kept=kept)

    def prefix(self, length: int) -> int:
        """The number of the ``length`` tokens that precede those of the grid; 0 if there is no grid and was none."""
        if self.grid is not None:
            return length - self.grid[0] * self.grid[1]
        return 0 if self.kept is None else self.kept.prefix

    def off_grid(self, length: int) -> Tokens:
        """A copy for the same ``length`` tokens, with their rows and columns in ``kept`` instead of ``grid``, if there
        is a grid.
        """
        if self.grid is None:
            return self
        cells = self.grid_places(length)
        assert cells is not None
        return self.replace(grid=None, kept=Kept(cells, self.grid, self.prefix(length)))

    def places(self, length: int) -> jax.Array:
        """Positions (batch or 1, length) or (batch or 1, length, axes): those given, else counted in each document."""
        if self.positions is not None:
            return self.positions
        index = jnp.arange(length, dtype=jnp.int32)[None]
        if self.segment_ids is None:
            return index
        return index - jax.lax.cummax(jnp.where(starts(self.segment_ids), index, 0), axis=1)

    def positions_or(self, counted: jax.Array) -> jax.Array:
        """The given positions, else those ``counted`` by a state."""
        return counted if self.positions is None else self.positions

    def starts(self, last: jax.Array | None = None) -> jax.Array | None:
        """Bool (batch, length), True for real tokens where a new document begins, as :func:`starts`; None without
        segment ids.
        """
        if self.segment_ids is None:
            return None
        begins = starts(self.segment_ids, last)
        return begins if self.mask is None else begins & self.mask

    def count(self, length: int, *, causal: bool) -> jax.Array:
        """Int32 (batch or 1, length): the number of real tokens of its document that a token may see, if ``causal``
        itself and those before it, else all; at least 1.
        """
        index = jnp.arange(1, length + 1, dtype=jnp.int32)[None]
        seen = index if self.mask is None else jnp.cumsum(self.mask, axis=1, dtype=jnp.int32)
        own = seen
        if (begins := self.starts()) is not None:
            own = seen - jax.lax.cummax(jnp.where(begins, seen - 1, 0), axis=1)
        if not causal:
            # Add the following tokens, up to the end of the row or the start of the next document.
            ends = jnp.arange(length)[None] == length - 1
            ends = ends if begins is None else ends | jnp.roll(begins, -1, axis=1)
            own += jax.lax.cummin(jnp.where(ends, seen, length), axis=1, reverse=True) - seen
        return jnp.maximum(own, 1)

    def segment_after(self, last: jax.Array) -> jax.Array:
        """(batch,) the document of the last real token; ``last`` (batch,) is the document before these tokens."""
        return last if self.segment_ids is None else last_segment(self.segment_ids, self.mask, last)

    def image(self, length: int) -> tuple[tuple[int, int], int]:
        """Rows and columns of an image's grid, and the number of prefix tokens among its ``length`` tokens.

        Raises:
          ValueError: the grid is not known.
        """
        if self.grid is None:
            raise ValueError(
                "the tokens' rows and columns are not known: give Tokens(grid=(rows, columns)), or x as (batch, rows, "
                "columns, features)"
            )
        return self.grid, length - self.grid[0] * self.grid[1]

    @property
    def ordered_positions(self) -> jax.Array | None:
        """The positions if they are those of a sequence, (batch or 1, length); None for rows and columns, which have no
        order.
        """
        return self.positions if self.positions is not None and self.positions.ndim == 2 else None

    def grid_places(self, length: int, stretched: tuple[int, int] | None = None) -> jax.Array | None:
        """Rows and columns (batch or 1, length, 2) of the tokens on their grid, or on the last one (``kept``), 0 in the
        prefix; None without a grid.

        With ``stretched``, they are rescaled to a grid of that size, as float32.
        """
        cells: Any
        if self.grid is not None:
            numbers = grid_positions(*self.grid)
            grid, cells = self.grid, np.pad(numbers, ((length - len(numbers), 0), (0, 0)))[None]
        elif self.kept is not None:
            grid, cells = self.kept.grid, self.kept.cells
        else:
            return None
        if stretched is not None and stretched != grid:
            cells = cells.astype(np.float32) / np.asarray(grid, np.float32) * np.asarray(stretched, np.float32)
        return jnp.asarray(cells)


Known = Tokens | jax.Array | None
"""What a mixer is given: a :class:`Tokens`, a mask alone, or nothing."""

PER_TOKEN = ("mask", "positions", "segment_ids", "roles")
FIELDS = (*PER_TOKEN, "context", "context_mask")


def grid_positions(height: int, width: int) -> np.ndarray:
    """Row and column of each token of a grid in row-major order: (height * width, 2) int32."""
    return np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).reshape(-1, 2).astype(np.int32)


def starts(segment_ids: jax.Array, last: jax.Array | None = None) -> jax.Array:
    """Bool (batch, length), True where a token belongs to another document than the token before it.

    Args:
      segment_ids: int32 (batch, length).
      last: (batch,) the document of the token before the first, as kept in a state; None at the start of a row, where
        the first token counts as no start.
    """
    before = segment_ids[:, :1] if last is None else last[:, None]
    return segment_ids != jnp.concatenate([before, segment_ids[:, :-1]], axis=1)


def numbered(segment_ids: jax.Array, last: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Document numbers (batch, new) int32 of tokens that continue a state: 0 for the state's document, then 1, 2, ...

    Args:
      segment_ids: int32 (batch, new).
      last: (batch,) the document of the token before the first.
      mask: bool (batch, new), True = real; padding, which is trailing, belongs to the last document.
    """
    begins = starts(segment_ids, last)
    return jnp.cumsum(begins if mask is None else begins & mask, axis=1, dtype=jnp.int32)


def last_segment(segment_ids: jax.Array, mask: jax.Array | None, last: jax.Array) -> jax.Array:
    """(batch,) the document of each row's last real token; ``last`` where the row has none."""
    if mask is None:
        return segment_ids[:, -1].astype(last.dtype)
    count = mask.sum(1, dtype=jnp.int32)
    ids = jnp.take_along_axis(segment_ids, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
    return jnp.where(count > 0, ids.astype(last.dtype), last)


class Continuation(NamedTuple):
    """Positions (batch, new) in their documents of tokens that continue a state, and the state's length and document
    after them, (batch,) each.
    """

    positions: jax.Array
    length: jax.Array
    segment: jax.Array


def continued(
    new: int, length: jax.Array, segment: jax.Array, mask: jax.Array | None = None, segment_ids: jax.Array | None = None
) -> Continuation:
    """The positions of ``new`` tokens that continue a state.

    Args:
      length: (batch,) int32, number of tokens read of each row's current document.
      segment: (batch,) int32, the id of that document.
      mask: bool (batch, new), True = real, padding trailing.
      segment_ids: int32 (batch, new); None if all belong to the current document.

    Returns:
      The positions, and the new ``length`` and ``segment``.
    """
    index = jnp.arange(new, dtype=jnp.int32)
    count = jnp.full_like(length, new) if mask is None else mask.sum(1, dtype=jnp.int32)
    places = length[:, None] + index
    if segment_ids is None:
        return Continuation(places, length + count, segment)
    begins = starts(segment_ids, segment)
    first = jax.lax.cummax(jnp.where(begins, index, -1), axis=1)
    places = jnp.where(first < 0, places, index - first)
    last = jnp.take_along_axis(places, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
    return Continuation(places, jnp.where(count > 0, last + 1, length), last_segment(segment_ids, mask, segment))
