"""Caches of the tokens that have been read, such as their keys and values in attention.

Keys and values are stored with the heads before the tokens: the matrix products of a query read them where they are.
From an array with the tokens first, XLA would copy all of them for each new token, which on a CPU took a sixth of
GPT-2's time for a token (6 of 34 ms, with 384 cached).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import struct

from layers.tokens import Continuation, Tokens, numbered


@struct.dataclass
class TokenCache:
    """Cache of the tokens read so far in each row's current document; a subclass adds the cached fields.

    Attributes:
      positions: (batch, capacity) int32, position of the token in each slot, -1 if empty; slot = index in the document
        modulo capacity.
      length: (batch,) int32, tokens of the document read so far.
      segment: (batch,) int32, id of the document.
    """

    positions: jax.Array
    length: jax.Array
    segment: jax.Array

    @classmethod
    def place(cls, name: str) -> tuple[str, int]:
        """Where entries called ``name`` are stored: the field, and its axis of slots."""
        return name, 1

    @staticmethod
    def nothing(batch: int, capacity: int) -> dict[str, jax.Array]:
        """The base fields of an empty cache."""
        # Separate arrays: a state may be donated, and an array can't be donated twice.
        length, segment = jnp.zeros((batch,), jnp.int32), jnp.zeros((batch,), jnp.int32)
        return {"positions": jnp.full((batch, capacity), -1, jnp.int32), "length": length, "segment": segment}

    def write(self, new: Mapping[str, jax.Array], tokens: Tokens, after: Continuation) -> Self:
        """Stores the entries of new tokens, (batch, new, ...) by field. They follow the old ones, or replace them if
        the old document has ended.

        Masked tokens are not stored. ``after`` determines the slots; explicit positions of ``tokens`` are stored but do
        not affect the slots.
        """
        capacity, positions = self.positions.shape[1], after.positions
        real = jnp.ones(positions.shape, bool) if tokens.mask is None else tokens.mask
        kept = self.positions
        if tokens.segment_ids is not None:
            document = numbered(tokens.segment_ids, self.segment, tokens.mask)
            real &= document == document[:, -1:]
            kept = jnp.where(document[:, -1:] > 0, -1, kept)
        # If tokens share a slot, only the last is kept; the others get an index out of bounds and are dropped.
        slot = jnp.where(real & (positions >= after.length[:, None] - capacity), positions % capacity, capacity)
        row = jnp.arange(positions.shape[0])[:, None]
        # A single entry is written beside one that is dropped. XLA would make the scatter of one entry an update of a
        # slice, merge that with what reads the cache, write it twice, and copy the cache for that.
        alone = positions.size == 1
        slot = jnp.pad(slot, ((0, 0), (0, alone)), constant_values=capacity)
        stored = {}
        for name, x in {**new, "positions": tokens.positions_or(positions)}.items():
            field, axis = self.place(name)
            old = kept if field == "positions" else getattr(self, field)
            x = jnp.pad(x, ((0, 0), (0, alone), *((0, 0),) * (x.ndim - 2)))
            index = (row, *(slice(None),) * (axis - 1), slot)  # what is found there: (batch, new, ...), as x
            stored[field] = old.at[index].set(x.astype(old.dtype), mode="drop")
        return dataclasses.replace(self, **stored, length=after.length, segment=after.segment)

    def read(
        self, new: Mapping[str, jax.Array], tokens: Tokens, after: Continuation, window: int | None = None
    ) -> tuple[Self, Self, tuple[jax.Array | None, jax.Array | None]]:
        """Stores the entries of new tokens as :meth:`write` does, and returns all that these tokens may attend to.

        Args:
          window: number of tokens that a token sees; None for all.

        Returns:
          The new state; a cache of all tokens that the new ones see; the documents of the new tokens and of that cache,
          or None each if unknown.

        Raises:
          ValueError: more tokens than the cache holds (outside ``jit``, where the lengths are known).
        """
        self._check_room(after.length, window)
        mask, ids = tokens.mask, tokens.segment_ids
        written = self.write(new, tokens, after)
        if after.positions.shape[1] == 1 or (window is None and ids is None):
            return written, written, (None, None)
        # The write may evict tokens that the first of the new ones still see.
        segments: tuple[jax.Array | None, jax.Array | None] = (None, None)
        if ids is not None:
            document = numbered(ids, self.segment, mask)
            segments = document, jnp.concatenate([jnp.zeros_like(self.positions), document], 1)
        positions = jnp.broadcast_to(tokens.positions_or(after.positions), after.positions.shape)
        new = {**new, "positions": positions if mask is None else jnp.where(mask, positions, -1)}
        both = {}
        for name, x in new.items():
            field, axis = self.place(name)
            old = getattr(self, field)
            both[field] = jnp.concatenate([old, jnp.moveaxis(x, 1, axis).astype(old.dtype)], axis)
        return written, dataclasses.replace(self, **both), segments

    def _check_room(self, length: jax.Array, window: int | None) -> None:
        """Refuses more tokens than fit, if lengths are known; under ``jit`` they are not, and the caller must check."""
        capacity = self.positions.shape[1]
        if capacity == window or isinstance(length, jax.core.Tracer):
            return
        if (needed := int(jnp.max(length))) > capacity:
            raise ValueError(
                f"the cache holds {capacity} tokens and {needed} are needed: give init_state a larger max_length"
            )


class ByHead:
    """Keys and values that are stored with the heads before the tokens."""

    key_by_head: jax.Array
    value_by_head: jax.Array

    @property
    def key(self) -> jax.Array:
        """(batch, tokens, kv_heads, head_dim)."""
        return jnp.swapaxes(self.key_by_head, 1, 2)

    @property
    def value(self) -> jax.Array:
        """(batch, tokens, kv_heads, value_dim)."""
        return jnp.swapaxes(self.value_by_head, 1, 2)


@struct.dataclass
class AttentionCache(ByHead, TokenCache):
    """Keys and values of the tokens read so far in each row's current document.

    Attributes:
      key_by_head, value_by_head: (batch, kv_heads, capacity, head_dim) and (batch, kv_heads, capacity, value_dim).
    """

    key_by_head: jax.Array
    value_by_head: jax.Array

    @classmethod
    def place(cls, name: str) -> tuple[str, int]:
        return (f"{name}_by_head", 2) if name in ("key", "value") else super().place(name)

    @classmethod
    def empty(
        cls, batch: int, capacity: int, kv_heads: int, head_dim: int, dtype: Any, value_dim: int | None = None
    ) -> AttentionCache:
        """An empty cache; ``value_dim`` defaults to ``head_dim``."""
        key, value = (jnp.zeros((batch, kv_heads, capacity, size), dtype) for size in (head_dim, value_dim or head_dim))
        return cls(**cls.nothing(batch, capacity), key_by_head=key, value_by_head=value)


@struct.dataclass
class ContextCache(ByHead):
    """Keys and values of the context of cross-attention.

    Attributes:
      key_by_head, value_by_head: (batch, kv_heads, context_length, head_dim) and (batch, kv_heads, context_length,
        value_dim).
      mask: bool (batch, context_length), True = real.
      length: (batch,) int32, tokens of the sequence that have read it so far.
    """

    key_by_head: jax.Array
    value_by_head: jax.Array
    mask: jax.Array
    length: jax.Array

    @classmethod
    def of(cls, key: jax.Array, value: jax.Array, mask: jax.Array) -> ContextCache:
        """Of keys and values (batch, context_length, kv_heads, dim) that nothing has read so far."""
        length = jnp.zeros((key.shape[0],), jnp.int32)
        return cls(jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2), mask, length)
