"""Reading tokens segment by segment, for mixers whose state changes at the end of each segment of a document.

A mixer provides ``step(state, piece) -> (state, found, sums)``: it reads tokens of one segment of each row and returns
for them a tree of arrays (batch, width, ...), and a tree of values that are summed over all pieces. A whole sequence is
a scan over its segments; tokens that continue a state are cut where their segments and documents end, which may differ
between rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from layers.tokens import Tokens
from primitives import sequence


class Piece(NamedTuple):
    """Tokens of one segment of each row; a row may have no tokens.

    Attributes:
      arrays: per-token arrays, (batch, width, ...).
      real: bool (batch, width), True for tokens, which come first.
      fresh: bool (batch,), True where the piece begins a document; None if no piece does.
    """

    arrays: tuple[jax.Array, ...]
    real: jax.Array
    fresh: jax.Array | None


Step = Callable[[Any, Piece], tuple[Any, Any, Any]]


def read_whole(step: Step, state: Any, arrays: tuple[jax.Array, ...], tokens: Tokens, size: int) -> tuple[Any, Any]:
    """Reads whole rows, whose documents must begin at multiples of ``size``.

    Args:
      state: an empty state.
      arrays: per-token arrays, (batch, length, ...).
      size: number of tokens of a segment.

    Returns:
      The tree ``found`` of all tokens, arrays (batch, length, ...), and ``sums`` added up.
    """
    batch, length = arrays[0].shape[:2]
    count = -(-length // size)

    def cut(a: jax.Array) -> jax.Array:
        a = jnp.pad(a, ((0, 0), (0, count * size - length), *((0, 0),) * (a.ndim - 2)))
        return jnp.moveaxis(a.reshape(batch, count, size, *a.shape[2:]), 1, 0)

    begins = tokens.starts()
    real = jnp.ones((batch, length), bool) if tokens.mask is None else tokens.mask
    pieces = Piece(tuple(map(cut, arrays)), cut(real), None if begins is None else cut(begins)[..., 0])

    def one(state: Any, piece: Piece) -> tuple[Any, Any]:
        state, *out = step(state, piece)
        return state, out

    with sequence.folded():
        _, (found, sums) = jax.lax.scan(one, state, pieces)

    def joined(a: jax.Array) -> jax.Array:
        a = jnp.moveaxis(a, 0, 1)
        return a.reshape(batch, count * size, *a.shape[3:])[:, :length]

    return jax.tree.map(joined, found), jax.tree.map(lambda a: jnp.sum(a, axis=0), sums)


def read_on(
    step: Step,
    state: Any,
    arrays: tuple[jax.Array, ...],
    tokens: Tokens,
    size: int,
    *,
    positions: jax.Array,
    document: jax.Array,
) -> tuple[Any, Any, Any]:
    """Reads tokens that continue ``state``.

    Args:
      positions: (batch, length), positions of the tokens in their documents.
      document: (batch,), segment id of the last token read before.

    Returns:
      The tree ``found`` of all tokens, arrays (batch, length, ...), the new state, and ``sums`` added up.
    """
    batch, length = positions.shape
    real = jnp.ones((batch, length), bool) if tokens.mask is None else tokens.mask
    begins = tokens.starts(document)
    cuts = (positions % size == 0) | (jnp.arange(length) == 0)
    number = jnp.cumsum(cuts, axis=1) - 1
    # There may be as many documents as tokens.
    count = length if begins is not None or length == 1 else (length - 2) // size + 2
    row, offset = jnp.arange(batch)[:, None], jnp.arange(min(length, size))

    def piece_of(i: jax.Array) -> tuple[Piece, jax.Array]:
        place = jnp.sum(number < i, axis=1)[:, None] + offset
        inside = jnp.minimum(place, length - 1)
        here = (number[row, inside] == i) & (place < length)
        fresh = None if begins is None else begins[row, inside][:, 0] & here[:, 0]
        piece = Piece(tuple(a[row, inside] for a in arrays), real[row, inside] & here, fresh)
        return piece, jnp.where(here, place, length)

    def read(i: jax.Array, carry: Any) -> Any:
        state, found, sums = carry
        piece, place = piece_of(i)
        state, new, more = step(state, piece)
        found = jax.tree.map(lambda a, b: a.at[row, place].set(b, mode="drop"), found, new)
        return state, found, jax.tree.map(jnp.add, sums, more)

    def one(carry: Any, i: jax.Array) -> tuple[Any, None]:
        return jax.lax.cond(jnp.any(number[:, -1] >= i), read, lambda _, carry: carry, i, carry), None

    with sequence.folded():
        shapes = jax.eval_shape(lambda state: step(state, piece_of(jnp.int32(0))[0])[1:], state)
        found = jax.tree.map(lambda a: jnp.zeros((batch, length, *a.shape[2:]), a.dtype), shapes[0])
        sums = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes[1])
        (state, found, sums), _ = jax.lax.scan(one, (state, found, sums), jnp.arange(count))
    return found, state, sums
