"""Tokens besides those of the input: class tokens, registers, persistent and landmark tokens.

Their owner holds them as parameters, under the names of released files. The functions here repeat them for each row,
insert them among the other tokens, extend what is known of the tokens to match, and take them out again.
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
    """Extra tokens: how many, and where they are inserted.

    Attributes:
      count: number of extra tokens at each place; 0 changes nothing.
      place: before the others ("first"), after half of them ("middle"), after all ("last"), or, an integer n, after
        every n.

    Raises:
      ValueError: an unknown ``place``.
    """

    count: int
    place: Literal["first", "middle", "last"] | int = "first"

    def __post_init__(self) -> None:
        if self.place not in ("first", "middle", "last") and not (isinstance(self.place, int) and self.place > 0):
            raise ValueError(f'extra tokens are "first", "middle", "last", or after every n tokens; got {self.place!r}')

    def put(self, x: jax.Array, learned: jax.Array, tokens: Known = None, *, role: int = 0) -> tuple[jax.Array, Tokens]:
        """Inserts the extra tokens among the tokens ``x``.

        They get the segment id and the position of the token before them; with "first", those of the first token. They
        are never masked, except that those after every n tokens take the mask of the token before them. With "first" a
        grid keeps them as its prefix; with any other place the sequence is no grid any more.

        Args:
          x: (batch, length, features).
          learned: (count, features), the same at each place.
          tokens: what is known of ``x``.
          role: role of the extra tokens, where roles are known.

        Returns:
          The tokens (batch, length + extra tokens, features), and what is known of them.

        Raises:
          ValueError: a mask with extra tokens in the middle or last, as padding must stay trailing.
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
        """As :meth:`put` after every n tokens, for the tokens of a later call: the first group may have begun in an
        earlier call.

        Args:
          x: (batch, new, features).
          learned: (count, features).
          places: int32 (batch, new), indices of the tokens in their documents.
          tokens: what is known of ``x``.

        Returns:
          The tokens (batch, woven, features), what is known of them, including a mask, and int32 (batch, new), the
          indices of ``x`` among them. ``woven`` has room for all groups that may end within ``new`` tokens.

        Raises:
          ValueError: ``place`` is not an integer.
        """
        if not isinstance(self.place, int):
            raise ValueError(f"extra tokens can be inserted call by call only after every n tokens, not {self.place}")
        tokens, (batch, new) = Tokens.of(tokens), x.shape[:2]
        real = jnp.ones((1, new), bool) if tokens.mask is None else tokens.mask
        ends = jnp.broadcast_to((places % self.place == self.place - 1) & real, (batch, new))
        passed = jnp.cumsum(ends, axis=1, dtype=jnp.int32)
        at = jnp.arange(new, dtype=jnp.int32) + self.count * (passed - ends)
        length = new + self.count * -(-new // self.place)
        # Extra tokens and padding take their source from the token before.
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
        """Splits (batch, length, ...) into the other tokens and the extra tokens, both in order."""
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
        """The number of the ``length`` other tokens that precede the extra ones."""
        return {"first": 0, "middle": length // 2, "last": length}[str(self.place)]

    def _source(self, length: int) -> np.ndarray:
        """For each token its index among the ``length`` others, or -1 for an extra token."""
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
