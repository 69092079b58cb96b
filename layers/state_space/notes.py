"""The notes of MemMamba (:mod:`layers.state_space.memory_mamba`): a pool of k summaries of earlier tokens.

A document is split into windows of w tokens, counted from its start. A window with at least one noted token stores a
note at its end: the element-wise maximum over its noted tokens. With w = 1 each noted token stores a note. A token
reads the notes of its document that were stored before it and are still in the pool: the last k, or the k of highest
priority, of equal ones the oldest.

Whole sequences need no separate pool for each token: notes are kept in the order of writing, with the number of the
note that replaces each, and a block of tokens reads only a few more than k notes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from layers.tokens import Tokens, continued, numbered, starts
from pallas_kernels import attention
from primitives import sequence

BLOCK = 64
"""Minimum number of tokens of a block that reads together; the capacity of the pool if that is larger."""


@struct.dataclass
class Notes:
    """The notes of each row's current document.

    Attributes:
      summaries: (batch, k, size), at least float32, the latest note last; only the last ``held`` entries are read. With
        priorities, the last number of a note is its priority.
      held: (batch,) int32, number of notes.
      pending: (batch, size), the note of the unfinished window so far; -inf if there is none.
      length: (batch,) int32, number of tokens read of the document.
      segment: (batch,) int32, id of the document.
    """

    summaries: jax.Array
    held: jax.Array
    pending: jax.Array
    length: jax.Array
    segment: jax.Array

    @classmethod
    def none(cls, batch: int, capacity: int, size: int, dtype: Any) -> Notes:
        """The state before the first token: no notes."""
        held, length, segment = (jnp.zeros((batch,), jnp.int32) for _ in range(3))
        pending = jnp.full((batch, size), -jnp.inf, dtype)
        return cls(jnp.zeros((batch, capacity, size), dtype), held, pending, length, segment)


class Read(NamedTuple):
    """Notes in the order of writing, and the range of them that each token reads.

    Attributes:
      summaries: (batch, k + new, size), the old notes, then the new ones.
      first, end: int32 (batch, length), index of the first note that a token reads, and one past the last.
      pools: int32 (batch, 1 + new, k), the notes of the pool after 0, 1, ... new ones; None for the last k.
      replaced: int32 (batch, k + new), the index of the note that replaces each, or one past all; None for k later.
    """

    summaries: jax.Array
    first: jax.Array
    end: jax.Array
    pools: jax.Array | None = None
    replaced: jax.Array | None = None


def write(
    said: jax.Array, worth: jax.Array, notes: Notes, tokens: Tokens, window: int, *, by_priority: bool = False
) -> tuple[Read, Notes]:
    """Stores notes of the tokens that follow those of ``notes``.

    Args:
      said: (batch, length, size), the note of each token; with priorities, the last number is its priority.
      worth: bool (batch, length), whether the token is noted.
      notes: the notes of the earlier tokens.
      tokens: what is known of the tokens.
      window: w.
      by_priority: whether a full pool replaces the note of lowest priority, if that of the new one is higher; else the
        oldest.

    Returns:
      What each token reads, and the new notes.
    """
    batch, length = worth.shape
    capacity = notes.summaries.shape[1]
    mask, ids = tokens.mask, tokens.segment_ids
    after = continued(length, notes.length, notes.segment, mask, ids)
    real = jnp.ones((batch, length), bool) if mask is None else mask
    said = jnp.where((worth & real)[..., None], said.astype(notes.summaries.dtype), -jnp.inf)
    found = _largest(said, notes.pending, window)
    left = real & (after.positions % window == window - 1) & (found[..., 0] > -jnp.inf)

    count = jnp.cumsum(left, axis=1, dtype=jnp.int32)
    before = count - left
    new = jnp.zeros((batch, -(-length // window), said.shape[-1]), said.dtype)
    place = jnp.where(left, before, new.shape[1])
    row = jnp.arange(batch)[:, None]
    new = new.at[row, place].set(jnp.where(left[..., None], found, 0), mode="drop")
    summaries = jnp.concatenate([notes.summaries, new], axis=1)

    begin = jnp.broadcast_to(capacity - notes.held[:, None], before.shape)
    document = jnp.zeros_like(before)
    if ids is not None:
        document = numbered(ids, notes.segment, mask)
        begins = starts(ids, notes.segment) & real
        begin = jax.lax.cummax(jnp.where(begins, capacity + before, begin), axis=1)
    total = count[:, -1:]
    reading = Read(summaries, jnp.maximum(before, begin), before + capacity)
    if by_priority and capacity:
        first = jnp.full((batch, new.shape[1]), -1, jnp.int32).at[row, place].set(begin, mode="drop")
        pools, replaced = _pools(jax.lax.stop_gradient(summaries[..., -1]), first)
        reading = Read(summaries[..., :-1], begin, before + capacity, pools, replaced)
        last = jnp.sort(jnp.where(pools[:, -1] >= begin[:, -1:], pools[:, -1], -1))
        kept, held = summaries[row, last], jnp.sum(last >= 0, axis=1, dtype=jnp.int32)
    else:
        kept = summaries[row, total + jnp.arange(capacity)]
        held = jnp.minimum(capacity, capacity + total - begin[:, -1:])[:, 0]
    unfinished = after.length - after.length % window
    open_ = (document == document[:, -1:]) & (after.positions >= unfinished[:, None])
    pending = jnp.max(jnp.where(open_[..., None], said, -jnp.inf), axis=1)
    goes_on = (document[:, -1] == 0) & (unfinished <= notes.length)
    pending = jnp.where(goes_on[:, None], jnp.maximum(pending, notes.pending), pending)
    return reading, Notes(kept, held, pending, after.length, after.segment)


def _pools(priority: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``pools`` and ``replaced`` of :class:`Read`.

    Args:
      priority: (batch, k + new), that of each note.
      first: int32 (batch, new), index of the first note of the document of each new one; -1 if it was not written.
    """
    batch, count = priority.shape
    capacity, row = count - first.shape[1], jnp.arange(batch)
    pool = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32), (batch, capacity))

    def add(pool: jax.Array, note: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        index, begin = note
        own = jnp.where(pool >= begin[:, None], jnp.take_along_axis(priority, pool, axis=1), -jnp.inf)
        lowest = jnp.min(own, axis=1)
        # Of equal ones the youngest, which has the largest index.
        slot = jnp.argmax(jnp.where(own == lowest[:, None], pool, -1), axis=1)
        enters = (begin >= 0) & (priority[:, index] > lowest)
        leaves = jnp.where(enters, pool[row, slot], index)
        pool = pool.at[row, slot].set(jnp.where(enters, index, pool[row, slot]))
        return pool, (pool, leaves)

    new = jnp.arange(capacity, count, dtype=jnp.int32)
    _, (pools, left) = jax.lax.scan(add, pool, (new, first.T))
    pools = jnp.concatenate([pool[:, None], jnp.moveaxis(pools, 0, 1)], axis=1)
    replaced = jnp.full((batch, count), count, jnp.int32).at[row[:, None], left.T].set(new)
    return pools, replaced


def _largest(said: jax.Array, pending: jax.Array, window: int) -> jax.Array:
    """The maximum over the last ``window`` tokens of each token; ``pending`` is the maximum before the first token."""
    if window == 1:
        return said
    earlier = jnp.full((*said.shape[:1], window - 2, said.shape[2]), -jnp.inf, said.dtype)
    said = jnp.concatenate([earlier, pending[:, None], said], axis=1)
    least = np.array(-np.inf, said.dtype)  # NumPy: JAX differentiates reduce_window only with a concrete value
    found: jax.Array = jax.lax.reduce_window(said, least, jax.lax.max, (1, window, 1), (1, 1, 1), "VALID")
    return found


def read(query: jax.Array, key: jax.Array, found: Read, capacity: int, window: int) -> jax.Array:
    """softmax(q K^T / sqrt(size)) S over each token's notes; zeros if it has none.

    Args:
      query: (batch, length, size).
      key: (batch, k + new, size), keys of the notes.
      found: the notes, and the range that each token reads.
      capacity, window: k and w.

    Returns:
      (batch, length, size) in the dtype of the query.
    """
    batch, length, size = query.shape
    block = min(length, max(BLOCK, capacity))
    count = -(-length // block)
    cut = ((0, 0), (0, count * block - length))
    query = jnp.pad(query, (*cut, (0, 0))).reshape(batch * count, block, 1, size)
    first, end = (jnp.pad(a, cut, mode="edge").reshape(batch, count, block, 1) for a in (found.first, found.end))
    # Notes are stored at least w tokens apart, which bounds the number of notes that a block reads.
    more = -(-block // window)
    if found.pools is None:
        place = end[:, :, :1] - capacity + jnp.arange(capacity + more)
    else:
        pool = jnp.take_along_axis(found.pools, end[:, :, 0] - capacity, axis=1)
        place = jnp.concatenate([pool, end[:, :, 0] + jnp.arange(more)], axis=-1)[:, :, None]
    inside = jnp.minimum(place, key.shape[1] - 1).reshape(batch, -1, 1)
    keys, values = (
        jnp.take_along_axis(a, inside, axis=1).reshape(batch * count, -1, 1, size).astype(query.dtype)
        for a in (key, found.summaries)
    )
    seen = (place >= first) & (place < end)
    if found.replaced is not None:
        until = jnp.take_along_axis(found.replaced, inside[..., 0], axis=1).reshape(place.shape)
        seen &= until >= end
    with sequence.folded():
        y = attention(query, keys, values, mask=seen.reshape(batch * count, 1, block, -1))
    return y.reshape(batch, count * block, size)[:, :length]
