"""Caches of the tokens that have been read, such as their keys and values in attention."""

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
        fields: dict[str, tuple[jax.Array, jax.Array]] = {name: (getattr(self, name), x) for name, x in new.items()}
        fields["positions"] = kept, tokens.positions_or(positions)
        stored = {name: old.at[row, slot].set(x.astype(old.dtype), mode="drop") for name, (old, x) in fields.items()}
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
        old = {name: getattr(self, name) for name in new}
        both = {name: jnp.concatenate([old[name], x.astype(old[name].dtype)], 1) for name, x in new.items()}
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


@struct.dataclass
class AttentionCache(TokenCache):
    """Keys and values of the tokens read so far in each row's current document.

    Attributes:
      key, value: (batch, capacity, kv_heads, head_dim) and (batch, capacity, kv_heads, value_dim).
    """

    key: jax.Array
    value: jax.Array

    @classmethod
    def empty(
        cls, batch: int, capacity: int, kv_heads: int, head_dim: int, dtype: Any, value_dim: int | None = None
    ) -> AttentionCache:
        """An empty cache; ``value_dim`` defaults to ``head_dim``."""
        key, value = (jnp.zeros((batch, capacity, kv_heads, size), dtype) for size in (head_dim, value_dim or head_dim))
        return cls(**cls.nothing(batch, capacity), key=key, value=value)


@struct.dataclass
class ContextCache:
    """Keys and values of the context of cross-attention.

    Attributes:
      key, value: (batch, context_length, kv_heads, head_dim) and (batch, context_length, kv_heads, value_dim).
      mask: bool (batch, context_length), True = real.
      length: (batch,) int32, tokens of the sequence that have read it so far.
    """

    key: jax.Array
    value: jax.Array
    mask: jax.Array
    length: jax.Array
