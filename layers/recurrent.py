"""The base of all recurrent mixers: a state of constant size, several documents in a row, padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import struct

from layers.mixer import Mixer, State, without_padding
from layers.tokens import Tokens
from pallas_kernels import linear_scan


@struct.dataclass
class RecurrentState:
    """The state of a recurrent mixer.

    Attributes:
      convolutions: states of its convolutions; empty if there are none.
      memory: (batch, ...), at least float32.
      segment: (batch,) int32, id of the current document.
    """

    convolutions: tuple[Any, ...]
    memory: jax.Array
    segment: jax.Array

    def after(self, tokens: Tokens, **changes: Any) -> Self:
        """The state after ``tokens``, with the new values ``changes``."""
        return dataclasses.replace(self, segment=tokens.segment_after(self.segment), **changes)


class Recurrent(Mixer):
    """Base class of causal mixers whose state has a constant size.

    A subclass implements its constructor, :meth:`recur`, and ``memory_shape``, or, if its state is not a
    :class:`RecurrentState`, :meth:`init_state`; its own state must have an attribute ``segment`` too.

    Attributes:
      memory_shape: shape of the memory of one row.
      convolutions: the short convolutions that :meth:`convolve` applies, in the order of its arrays.
    """

    supports_causal = True
    supports_bidirectional = False
    honors = frozenset({"mask", "segment_ids"})
    causal = True

    @property
    def complexity(self) -> float:
        return 1.0

    @property
    def memory_shape(self) -> tuple[int, ...]:
        raise NotImplementedError(f"{type(self).__name__} does not define memory_shape")

    @property
    def convolutions(self) -> tuple[Recurrent, ...]:
        return ()

    def recur(self, x: jax.Array, tokens: Tokens, state: Any, /, *own: Any) -> tuple[jax.Array, Any]:
        """Reads tokens from the start of the row, or from a state.

        Args:
          x: (batch, length, features), zeros where ``tokens.mask`` is False: such tokens must leave the state
            unchanged.
          state: the state after the previous tokens; None at the start of the row, if no new state is needed.
          *own: for a mixer that ``shares``, the values given to its block only. Values that blocks pass on bypass it.

        Returns:
          The output (batch, length, features) and the new state, None if ``state`` is None.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement recur")

    def mix(self, x: jax.Array, tokens: Tokens, /, *beside: Any) -> Any:
        y = self.recur(without_padding(x, tokens.mask), tokens, None, *beside[1:])[0]
        return (y, beside[0]) if self.shares else y

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> Any:
        """An empty state; its size does not depend on the length, and its memory is never narrower than float32."""
        convolutions = tuple(conv.init_state(batch_size, dtype=dtype) for conv in self.convolutions)
        return RecurrentState(
            convolutions, empty((batch_size, *self.memory_shape), dtype), jnp.zeros((batch_size,), jnp.int32)
        )

    def mix_next(self, x: jax.Array, state: State, tokens: Tokens, /, *beside: Any) -> Any:
        y, new = self.recur(without_padding(x, tokens.mask), tokens, state, *beside[1:])
        new = jax.tree.map(lambda new, old: new.astype(old.dtype), new, state)
        return (y, new, beside[0]) if self.shares else (y, new)

    def starts(self, tokens: Tokens, state: Any) -> jax.Array | None:
        """Bool (batch, length), True for real tokens at which a new document begins; None without segment ids."""
        return tokens.starts(None if state is None else state.segment)

    def convolve(
        self, arrays: Sequence[jax.Array], tokens: Tokens, state: RecurrentState | None
    ) -> tuple[Sequence[jax.Array], tuple[Any, ...]]:
        """Applies to each of ``arrays`` (batch, length, features) its convolution; returns them, unchanged if there are
        no convolutions, and the convolutions' new states.
        """
        if not self.convolutions:
            return arrays, ()
        before = (None,) * len(arrays) if state is None else state.convolutions
        read, seen = zip(
            *(conv.recur(a, tokens, last) for conv, a, last in zip(self.convolutions, arrays, before, strict=True)),
            strict=True,
        )
        return read, seen


def empty(shape: tuple[int, ...], dtype: Any, least: Any = jnp.float32) -> jax.Array:
    """Zeros in ``dtype``, promoted to at least ``least``."""
    return jnp.zeros(shape, jnp.promote_types(dtype, least))


def accumulate(
    x: jax.Array, decay: jax.Array, tokens: Tokens, state: RecurrentState | None
) -> tuple[jax.Array, jax.Array]:
    """``linear_scan`` from the memory of ``state``; padding leaves the memory unchanged.

    Args:
      x, decay: (batch, length, channels).

    Returns:
      The results (batch, length, channels), and the new memory (batch, channels).
    """
    before, segment = (None, None) if state is None else (state.memory, state.segment)
    if state is not None and tokens.mask is not None:
        x, decay = (jnp.where(tokens.mask[..., None], a, 0) for a in (x, decay))
    return linear_scan(x, decay, initial_state=before, starts=tokens.starts(segment), return_state=True)
