"""The notes of MemMamba (:mod:`layers.state_space.memory_mamba`): a pool of the last k summaries of what was read.

A document is read in windows of w tokens, counted from its start. A window of which at least one token is worth a note
leaves one at its end: the largest of each number among what such tokens say. With w = 1 each of them leaves a note. A
token reads the last k notes of its document that were left before it.

Whole sequences are read without a pool for each token: notes are put in the order of writing, so that what a token
reads is a window in that order, and a block of tokens reads few more than k of them.
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
"""Tokens that read together, where the pool holds fewer notes."""


@struct.dataclass
class Notes:
    """What is kept of each row's current document.

    Attributes:
      summaries: (batch, k, size), at least float32, the latest note last; what is before the first is not read.
      held: (batch,) int32, how many of them there are.
      pending: (batch, size), the note of the unfinished window so far; -inf where there is none.
      length: (batch,) int32, tokens read of the document.
      segment: (batch,) int32, that document.
    """

    summaries: jax.Array
    held: jax.Array
    pending: jax.Array
    length: jax.Array
    segment: jax.Array

    @classmethod
    def none(cls, batch: int, capacity: int, size: int, dtype: Any) -> Notes:
        """No notes of documents of which nothing was read."""
        held, length, segment = (jnp.zeros((batch,), jnp.int32) for _ in range(3))
        pending = jnp.full((batch, size), -jnp.inf, dtype)
        return cls(jnp.zeros((batch, capacity, size), dtype), held, pending, length, segment)


class Read(NamedTuple):
    """Notes in the order of writing, and which of them each token reads.

    Attributes:
      summaries: (batch, k + new, size), those kept and then the new ones.
      first, end: int32 (batch, length), the place of the first that a token reads, and the one after the last.
    """

    summaries: jax.Array
    first: jax.Array
    end: jax.Array


def write(said: jax.Array, worth: jax.Array, notes: Notes, tokens: Tokens, window: int) -> tuple[Read, Notes]:
    """Takes notes of tokens that are read after those of ``notes``.

    Args:
      said: (batch, length, size), what a note says of each token.
      worth: bool (batch, length), whether it is noted.
      window: w.
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
    kept = summaries[row, total + jnp.arange(capacity)]
    held = jnp.minimum(capacity, capacity + total - begin[:, -1:])[:, 0]
    unfinished = after.length - after.length % window
    open_ = (document == document[:, -1:]) & (after.positions >= unfinished[:, None])
    pending = jnp.max(jnp.where(open_[..., None], said, -jnp.inf), axis=1)
    goes_on = (document[:, -1] == 0) & (unfinished <= notes.length)
    pending = jnp.where(goes_on[:, None], jnp.maximum(pending, notes.pending), pending)
    notes = Notes(kept, held, pending, after.length, after.segment)
    return Read(summaries, jnp.maximum(before, begin), before + capacity), notes


def _largest(said: jax.Array, pending: jax.Array, window: int) -> jax.Array:
    """The largest among each token's ``window`` last ones; ``pending`` are those before the first."""
    if window == 1:
        return said
    earlier = jnp.full((*said.shape[:1], window - 2, said.shape[2]), -jnp.inf, said.dtype)
    said = jnp.concatenate([earlier, pending[:, None], said], axis=1)
    least = np.array(-np.inf, said.dtype)  # of NumPy: JAX knows its gradient where it sees the number
    found: jax.Array = jax.lax.reduce_window(said, least, jax.lax.max, (1, window, 1), (1, 1, 1), "VALID")
    return found


def read(query: jax.Array, key: jax.Array, found: Read, capacity: int, window: int) -> jax.Array:
    """softmax(q K^T / sqrt(size)) S over each token's notes; zeros where it has none.

    Args:
      query: (batch, length, size).
      key: (batch, k + new, size), of the notes.
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
    # Windows end at least w tokens apart: so many notes are between those that the first and the last of a block read.
    place = end[:, :, :1] - capacity + jnp.arange(capacity + -(-block // window))
    inside = jnp.minimum(place, key.shape[1] - 1).reshape(batch, -1, 1)
    keys, values = (
        jnp.take_along_axis(a, inside, axis=1).reshape(batch * count, -1, 1, size).astype(query.dtype)
        for a in (key, found.summaries)
    )
    seen = (place >= first) & (place < end)
    with sequence.folded():
        y = attention(query, keys, values, mask=seen.reshape(batch * count, 1, block, -1))
    return y.reshape(batch, count * block, size)[:, :length]
