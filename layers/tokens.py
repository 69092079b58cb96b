"""What is known of the tokens besides their features: one object that mixers, blocks and backbones hand on whole."""

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
    """Where the tokens lay that are left of a grid which is none any more.

    Attributes:
      cells: int32, (batch or 1, length, 2), row and column of each token on that grid, 0 in the prefix.
      grid: its rows and columns.
      prefix: how many tokens precede those of the grid.
    """

    cells: jax.Array
    grid: tuple[int, int] = struct.field(pytree_node=False)
    prefix: int = struct.field(pytree_node=False, default=0)


@struct.dataclass
class Tokens:
    """What is known of the tokens that a mixer is given; what is None is not known.

    Shapes are those of sequences, (batch, length); a grid's are (batch, height, width).

    Attributes:
      mask: bool, True = real token. The padding of a sequence is trailing.
      positions: int32, (batch or 1, length), or (batch or 1, length, axes) for tokens of a grid.
      segment_ids: int32, equal for the tokens of one document, which are neighbors; documents do not see each other.
      roles: int32, what a token is to mixers that ask for it (a global token of Longformer, say).
      context: (batch, context_length, context_features), what cross attention reads.
      context_mask: bool (batch, context_length), True = real.
      grid: rows and columns of the tokens of an image in row-major order. The tokens before them in the sequence are
        its prefix. A mixer without use for it need not honor it: it says how the tokens lie and asks for nothing.
      kept: in place of ``grid``, where a :class:`layers.reduction.TokenReduction` left none: what the tokens left lay
        on. It asks for nothing either.
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
        """``known`` itself, or the object of which it is the mask; None is an object of which nothing is known."""
        return known if isinstance(known, Tokens) else cls(mask=known)

    def given(self) -> frozenset[str]:
        """Names of the fields that ask something of a mixer: all that are known except where tokens lie on a grid."""
        return frozenset(name for name in FIELDS if getattr(self, name) is not None)

    def replace(self, **changes: Any) -> Tokens:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def without(self, *names: str) -> Tokens:
        """A copy that does not know ``names``."""
        return self.replace(**dict.fromkeys(names))

    def rearranged(self, move: Callable[[jax.Array], jax.Array], grid: tuple[int, int] | None = None) -> Tokens:
        """What is known after ``move``, which takes what each token has, (batch, length, ...), to another order or
        shape.

        ``grid`` is that of the new order. Positions that all rows share move as they are, with a batch of 1.
        """
        moved = {name: move(value) for name in PER_TOKEN if (value := getattr(self, name)) is not None}
        kept = (
            None
            if self.kept is None or grid is not None
            else dataclasses.replace(self.kept, cells=move(self.kept.cells))
        )
        return self.replace(**moved, grid=grid, kept=kept)

    def prefix(self, length: int) -> int:
        """How many of ``length`` tokens precede those of the grid; 0 where there is and was none."""
        if self.grid is not None:
            return length - self.grid[0] * self.grid[1]
        return 0 if self.kept is None else self.kept.prefix

    def off_grid(self, length: int) -> Tokens:
        """The same tokens, ``length`` of them, with their rows and columns as ``kept`` in place of the grid, if any."""
        if self.grid is None:
            return self
        cells = self.grid_places(length)
        assert cells is not None
        return self.replace(grid=None, kept=Kept(cells, self.grid, self.prefix(length)))

    def places(self, length: int) -> jax.Array:
        """Positions (batch or 1, length[, axes]): those given, else those in each document, else 0, 1, 2, ..."""
        if self.positions is not None:
            return self.positions
        index = jnp.arange(length, dtype=jnp.int32)[None]
        if self.segment_ids is None:
            return index
        return index - jax.lax.cummax(jnp.where(starts(self.segment_ids), index, 0), axis=1)

    def positions_or(self, counted: jax.Array) -> jax.Array:
        """The positions that were given, else those that a state has ``counted``."""
        return counted if self.positions is None else self.positions

    def starts(self, last: jax.Array | None = None) -> jax.Array | None:
        """Bool (batch, length): the real tokens where another document begins, as :func:`starts`; None without ids."""
        if self.segment_ids is None:
            return None
        begins = starts(self.segment_ids, last)
        return begins if self.mask is None else begins & self.mask

    def count(self, length: int, *, causal: bool) -> jax.Array:
        """Int32 (batch or 1, length): how many real tokens of its document a token may see, itself and, where causal,
        those before it; at least 1.
        """
        index = jnp.arange(1, length + 1, dtype=jnp.int32)[None]
        seen = index if self.mask is None else jnp.cumsum(self.mask, axis=1, dtype=jnp.int32)
        own = seen
        if (begins := self.starts()) is not None:
            own = seen - jax.lax.cummax(jnp.where(begins, seen - 1, 0), axis=1)
        if not causal:
            # And those that follow, up to the end of the row or to where another document begins.
            ends = jnp.arange(length)[None] == length - 1
            ends = ends if begins is None else ends | jnp.roll(begins, -1, axis=1)
            own += jax.lax.cummin(jnp.where(ends, seen, length), axis=1, reverse=True) - seen
        return jnp.maximum(own, 1)

    def segment_after(self, last: jax.Array) -> jax.Array:
        """(batch,) the document after these tokens, of which ``last`` is that before them."""
        return last if self.segment_ids is None else last_segment(self.segment_ids, self.mask, last)

    def image(self, length: int) -> tuple[tuple[int, int], int]:
        """Rows and columns of ``length`` tokens of an image, and how many prefix tokens there are before them.

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
        """Positions in a sequence (batch or 1, length), where they are given; rows and columns have no order."""
        return self.positions if self.positions is not None and self.positions.ndim == 2 else None

    def grid_places(self, length: int, stretched: tuple[int, int] | None = None) -> jax.Array | None:
        """Rows and columns (batch or 1, length, 2) of the tokens of the grid, or of what is left of one, 0 in the
        prefix; None without a grid.

        Those of a grid of ``stretched`` rows and columns are counted on it in equal steps, and are then no whole
        numbers.
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
"""What a mixer is given: the tokens' object, or its mask alone, or nothing."""

PER_TOKEN = ("mask", "positions", "segment_ids", "roles")
FIELDS = (*PER_TOKEN, "context", "context_mask")


def grid_positions(height: int, width: int) -> np.ndarray:
    """Row and column of each token of a grid in row-major order: (height * width, 2) int32."""
    return np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).reshape(-1, 2).astype(np.int32)


def starts(segment_ids: jax.Array, last: jax.Array | None = None) -> jax.Array:
    """Bool (batch, length): where another document begins than the one that the token before belongs to.

    Args:
      segment_ids: int32 (batch, length).
      last: (batch,) the document of the token before the first, as a state keeps it; None: there was none.
    """
    before = segment_ids[:, :1] if last is None else last[:, None]
    return segment_ids != jnp.concatenate([before, segment_ids[:, :-1]], axis=1)


def numbered(segment_ids: jax.Array, last: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Documents (batch, new) int32 of tokens that are read after others: 0 is the one that these belong to, then 1, 2,
    ...

    Args:
      segment_ids: int32 (batch, new).
      last: (batch,) the document of the token before the first.
      mask: bool (batch, new), True = real; padding, which is trailing, counts to the last document.
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
    """Where tokens are that are read after others: positions (batch, new) in their documents, and what a state knows
    after them.
    """

    positions: jax.Array
    length: jax.Array
    segment: jax.Array


def continued(
    new: int, length: jax.Array, segment: jax.Array, mask: jax.Array | None = None, segment_ids: jax.Array | None = None
) -> Continuation:
    """Where ``new`` tokens are that are read after others.

    Args:
      length: (batch,) int32, tokens read so far of each row's current document.
      segment: (batch,) int32, that document.
      mask: bool (batch, new), True = real, padding trailing.
      segment_ids: int32 (batch, new); None: all belong to the current document.

    Returns:
      Their positions, and ``length`` and ``segment`` after them.
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
