"""Packed documents: rows that hold several documents, each computed as if it were alone.

A recurrent op takes ``starts``, bool (batch, length), True where a document begins. The decays are not changed for it:
minus infinity in a sum of logarithms turns their differences into NaN. Instead, interactions across a border are
masked: tokens interact if equally many documents have begun up to them, the initial state reaches the tokens before the
first start, and the final state contains only what the last document wrote.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

OBJECTION = "it does not know where packed documents start"
"""The objection of a kernel that does not support ``starts``."""


@dataclasses.dataclass(frozen=True)
class Documents:
    """The documents of a row, or of a chunk of one.

    Attributes:
      number: int32 (batch, tokens), how many documents have begun up to and including each token; None if none begins.
    """

    number: jax.Array | None

    @classmethod
    def of(cls, starts: jax.Array | None) -> Documents:
        """The documents of ``starts``, bool (batch, tokens) or None."""
        return cls(None if starts is None else jnp.cumsum(starts, axis=1, dtype=jnp.int32))

    def repeat(self, steps: int) -> Documents:
        """The documents of an array with ``steps`` rows for each token."""
        return self if self.number is None or steps == 1 else Documents(jnp.repeat(self.number, steps, axis=1))

    def of_each(self, count: int) -> Documents:
        """The documents of a batch with ``count`` consecutive rows for each row of this one."""
        return self if self.number is None else Documents(jnp.repeat(self.number, count, axis=0))

    def seen(self, visible: jax.Array, between: int, keys: Documents | None = None) -> jax.Array:
        """The pairs in ``visible``, bool (tokens, keys), whose token and key belong to the same document.

        Args:
          between: number of axes of size 1 between the batch axis and those of the pairs.
          keys: the documents of the keys; those of the tokens by default.

        Returns:
          bool (batch, 1, ..., tokens, keys); ``visible`` where no document begins.
        """
        if self.number is None:
            return visible
        others = self.number if keys is None or keys.number is None else keys.number
        same = self.number[:, :, None] == others[:, None]
        return visible & same.reshape(same.shape[0], *(1,) * between, *same.shape[1:])

    def continuing(self, x: jax.Array, axis: int) -> jax.Array:
        """``x``, with the batch at axis 0 and tokens at ``axis``, and zeros for tokens at or after the first start."""
        return x if self.number is None else jnp.where(_along(self.number == 0, x, axis), x, 0)

    def last(self, x: jax.Array, axis: int) -> jax.Array:
        """``x``, with the batch at axis 0 and tokens at ``axis``, and zeros for tokens outside the last document."""
        return x if self.number is None else jnp.where(_along(self.number == self.number[:, -1:], x, axis), x, 0)

    def carried(self, state: jax.Array) -> jax.Array:
        """The initial ``state`` (batch, ...), with zeros in rows where a document begins."""
        return state if self.number is None else jnp.where(_along(self.number[:, -1:] == 0, state, 0), state, 0)


def _along(tokens: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """(batch, tokens) reshaped to broadcast against ``x``: batch at axis 0, tokens at ``axis``; for axis 0, (batch,
    1).
    """
    shape = [1] * x.ndim
    shape[axis], shape[0] = tokens.shape[1], tokens.shape[0]
    return tokens.reshape(shape)


def check(op: str, starts: Any, batch: int, length: int) -> None:
    """Checks the ``starts`` of an op.

    Raises:
      ValueError: another shape than (batch, length), or another dtype than bool.
    """
    if starts is not None and (starts.shape != (batch, length) or starts.dtype != jnp.bool):
        raise ValueError(
            f"{op}: starts must be bool (batch, length) = {(batch, length)}, True where a document begins; got "
            f"{starts.dtype} {starts.shape}"
        )


def at(length: int, *rows: tuple[int, ...]) -> np.ndarray:
    """bool (rows, length), True at the positions listed for each row; for cases and tests."""
    return np.stack([np.isin(np.arange(length), places) for places in rows])
