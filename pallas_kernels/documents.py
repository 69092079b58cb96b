"""Packed documents: rows that hold several, each of which is computed as if it were alone.

A recurrent op takes ``starts``, bool (batch, length), True where a document begins. No decay is changed for it: minus
infinity in a sum of logarithms makes NaN of their differences. What crosses a border is masked instead: tokens see one
another where as many documents have begun, the state from before reaches those where none has, and the state handed on
has only what the last document wrote.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

OBJECTION = "it does not know where packed documents start"
"""What a kernel that takes no ``starts`` answers."""


@dataclasses.dataclass(frozen=True)
class Documents:
    """The documents of a row, or of a chunk of one.

    Attributes:
      number: (batch, tokens) int32, how many have begun up to each token and with it; None: none begins.
    """

    number: jax.Array | None

    @classmethod
    def of(cls, starts: jax.Array | None) -> Documents:
        """Of bool (batch, tokens)."""
        return cls(None if starts is None else jnp.cumsum(starts, axis=1, dtype=jnp.int32))

    def repeat(self, steps: int) -> Documents:
        """Of rows that are ``steps`` for each token."""
        return self if self.number is None or steps == 1 else Documents(jnp.repeat(self.number, steps, axis=1))

    def of_each(self, count: int) -> Documents:
        """Of ``count`` rows, one after the other, for each of these."""
        return self if self.number is None else Documents(jnp.repeat(self.number, count, axis=0))

    def seen(self, visible: jax.Array, between: int, keys: Documents | None = None) -> jax.Array:
        """Those of the pairs ``visible``, bool (tokens, keys), that are of one document.

        Args:
          between: axes of size 1 between the rows and the pairs.
          keys: the documents of the keys; by default those of the tokens.

        Returns:
          bool (batch, 1, ..., tokens, keys); ``visible`` where no document begins.
        """
        if self.number is None:
            return visible
        others = self.number if keys is None or keys.number is None else keys.number
        same = self.number[:, :, None] == others[:, None]
        return visible & same.reshape(same.shape[0], *(1,) * between, *same.shape[1:])

    def continuing(self, x: jax.Array, axis: int) -> jax.Array:
        """``x`` with its tokens at ``axis`` and rows at 0, and zeros where something began since what came before."""
        return x if self.number is None else jnp.where(_along(self.number == 0, x, axis), x, 0)

    def last(self, x: jax.Array, axis: int) -> jax.Array:
        """The same with zeros where another document follows."""
        return x if self.number is None else jnp.where(_along(self.number == self.number[:, -1:], x, axis), x, 0)

    def carried(self, state: jax.Array) -> jax.Array:
        """``state`` (batch, ...) of before, and zeros in rows where a document begins."""
        return state if self.number is None else jnp.where(_along(self.number[:, -1:] == 0, state, 0), state, 0)


def _along(tokens: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """(batch, tokens) with the axes of ``x``: rows at 0, tokens at ``axis``; (batch, 1) at 0 is one of each row."""
    shape = [1] * x.ndim
    shape[axis], shape[0] = tokens.shape[1], tokens.shape[0]
    return tokens.reshape(shape)


def check(op: str, starts: Any, batch: int, length: int) -> None:
    """Refuses what can't be the ``starts`` of an op.

    Raises:
      ValueError: another shape than (batch, length), or another dtype than bool.
    """
    if starts is not None and (starts.shape != (batch, length) or starts.dtype != jnp.bool):
        raise ValueError(
            f"{op}: starts must be bool (batch, length) = {(batch, length)}, True where a document begins; got "
            f"{starts.dtype} {starts.shape}"
        )


def at(length: int, *rows: tuple[int, ...]) -> np.ndarray:
    """bool (rows, length), True at the places that each row names: for cases and tests."""
    return np.stack([np.isin(np.arange(length), places) for places in rows])
