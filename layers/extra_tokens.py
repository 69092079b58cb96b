"""Tokens besides those of the input: class tokens, registers, persistent and landmark tokens.

Their owner holds them as parameters, under the names of released files. Here is what is done with them: they are
repeated for each row, put among the other tokens, and taken out again; what is known of the tokens is extended.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from layers.broadcast import broadcast
from layers.tokens import Known, Tokens


def repeated(learned: jax.Array, batch: int, dtype: Any) -> jax.Array:
    """Learned tokens (count, features) for each row: (batch, count, features) in ``dtype``; the gradient is summed in
    float32.
    """
    return broadcast(learned, (batch, *learned.shape), dtype)


@dataclasses.dataclass(frozen=True)
class ExtraTokens:
    """Where extra tokens are among others.

    Attributes:
      count: how many there are at each place; 0 changes nothing.
      place: before the others ("first"), after half of them ("middle"), after all ("last"), or after every so many.
    """

    count: int
    place: Literal["first", "middle", "last"] | int = "first"

    def __post_init__(self) -> None:
        if self.place not in ("first", "middle", "last") and not (isinstance(self.place, int) and self.place > 0):
            raise ValueError(f'extra tokens are "first", "middle", "last", or after every so many, got {self.place!r}')

    def put(self, x: jax.Array, learned: jax.Array, tokens: Known = None, *, role: int = 0) -> tuple[jax.Array, Tokens]:
        """Puts them among the tokens ``x``.

        They belong to the document of the token before them, and have its position; the first ones have those of the
        first token. They are real; after every so many they are as real as the token before. A grid has them as its
        prefix, and elsewhere none is left.

        Args:
          x: (batch, length, features).
          learned: (count, features), the same at each place.
          tokens: what is known of ``x``.
          role: theirs, where roles are known.

        Raises:
          ValueError: a mask, whose padding is trailing, with tokens in the middle or last.
        """
        tokens = Tokens.of(tokens)
        if not self.count:
            return x, tokens
        batch, length, features = x.shape
        known = self._known(tokens, length, role)
        if isinstance(self.place, int):
            groups, every = length // self.place, self.place
            whole = x[:, : groups * every].reshape(batch * groups, every, features)
            woven = jnp.concatenate([whole, repeated(learned, batch * groups, x.dtype)], 1).reshape(batch, -1, features)
            return jnp.concatenate([woven, x[:, groups * every :]], 1), known
        at = self._before(length)
        parts = x[:, :at], repeated(learned, batch, x.dtype), x[:, at:]
        return jnp.concatenate([part for part in parts if part.shape[1]], 1), known

    def put_next(
        self, x: jax.Array, learned: jax.Array, places: jax.Array, tokens: Known = None
    ) -> tuple[jax.Array, Tokens, jax.Array]:
        """As :meth:`put` after every so many, for tokens that are read after others: some of a group may be read
        already.

        Args:
          x: (batch, new, features).
          learned: (count, features).
          places: int32 (batch, new), where in their documents the tokens are.
          tokens: what is known of ``x``.

        Returns:
          (batch, woven, features), what is known of them, with a mask, and int32 (batch, new), where the tokens ``x``
          are among them. There is room for all groups that may end within so many tokens.

        Raises:
          ValueError: other places than after every so many.
        """
        if not isinstance(self.place, int):
            raise ValueError(f"tokens that are read after others have extra ones after every so many, not {self.place}")
        tokens, (batch, new) = Tokens.of(tokens), x.shape[:2]
        real = jnp.ones((1, new), bool) if tokens.mask is None else tokens.mask
        ends = jnp.broadcast_to((places % self.place == self.place - 1) & real, (batch, new))
        passed = jnp.cumsum(ends, axis=1, dtype=jnp.int32)
        at = jnp.arange(new, dtype=jnp.int32) + self.count * (passed - ends)
        length = new + self.count * -(-new // self.place)
        # Of those in between and after all, the token before.
        row = jnp.arange(batch)[:, None]
        source = jnp.zeros((batch, length), jnp.int32).at[row, at].set(jnp.arange(new, dtype=jnp.int32))
        source = jax.lax.cummax(source, axis=1)
        since = jnp.arange(length, dtype=jnp.int32) - jnp.take_along_axis(at, source, axis=1)
        of_learned = repeated(learned, batch, x.dtype)
        woven = jnp.concatenate([x, of_learned], axis=1)
        woven = jnp.take_along_axis(woven, jnp.where(since > 0, new + (since - 1) % self.count, source)[..., None], 1)
        known = tokens.rearranged(lambda a: jnp.take_along_axis(a, source, axis=1))
        count = real.sum(1, keepdims=True) + self.count * passed[:, -1:]
        return woven, known.replace(mask=jnp.arange(length) < count), at

    def take(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Takes them out of (batch, length, ...): the other tokens, and these, in their order."""
        if not self.count:
            return x, x[:, :0]
        if isinstance(self.place, int):
            groups = x.shape[1] // (self.place + self.count)
            source = self._source(x.shape[1] - groups * self.count)
            return x[:, source >= 0], x[:, source < 0]
        at = self._before(x.shape[1] - self.count)
        others = jnp.concatenate([x[:, :at], x[:, at + self.count :]], 1) if at else x[:, self.count :]
        return others, x[:, at : at + self.count]

    def _before(self, length: int) -> int:
        """How many of ``length`` others precede them."""
        return {"first": 0, "middle": length // 2, "last": length}[str(self.place)]

    def _source(self, length: int) -> np.ndarray:
        """For each token the one of the ``length`` others that it is, or -1."""
        index = np.arange(length)
        if not isinstance(self.place, int):
            return np.insert(index, self._before(length), [-1] * self.count)
        after = np.arange(self.place, length + 1, self.place)
        return np.insert(index, np.repeat(after, self.count), -1)

    def _known(self, tokens: Tokens, length: int, role: int) -> Tokens:
        if tokens.mask is not None and self.place in ("middle", "last"):
            raise ValueError(f"padding is trailing: extra tokens can't be {self.place} in rows with a mask")
        source = self._source(length)
        # The token before, or the first.
        near = np.maximum(np.maximum.accumulate(source), 0)
        first = self.place == "first"
        prefix = self.count + tokens.prefix(length) if first else 0
        known = tokens.rearranged(lambda a: a[:, near], tokens.grid if first else None)
        if known.roles is not None:
            known = known.replace(roles=jnp.where(source < 0, role, known.roles))
        if known.mask is not None and first:
            known = known.replace(mask=known.mask | (source < 0))
        if known.kept is not None:
            cells = jnp.where(np.arange(len(source))[:, None] < prefix, 0, known.kept.cells)
            known = known.replace(kept=dataclasses.replace(known.kept, cells=cells, prefix=prefix) if first else None)
        return known
