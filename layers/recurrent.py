"""What all recurrent mixers have in common: a state whose size does not depend on the length, documents that share a
row, padding.
"""

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
      convolutions: those of its convolutions; empty without convolutions.
      memory: (batch, ...), at least float32.
      segment: (batch,) int32, the document that it is of.
    """

    convolutions: tuple[Any, ...]
    memory: jax.Array
    segment: jax.Array

    def after(self, tokens: Tokens, **changes: Any) -> Self:
        """The state after ``tokens``, which changed the fields ``changes``."""
        return dataclasses.replace(self, segment=tokens.segment_after(self.segment), **changes)


class Recurrent(Mixer):
    """Base class of mixers that read tokens in order and remember them in a state of constant size.

    A subclass gives its constructor, :meth:`recur`, and ``memory_shape``, or :meth:`init_state` where its state is
    another than :class:`RecurrentState`; such a state has an attribute ``segment`` too.

    Attributes:
      memory_shape: of one row's memory.
      convolutions: the short convolutions that :meth:`convolve` applies, in the order of what they read.
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
        raise NotImplementedError(f"{type(self).__name__} does not say what it remembers")

    @property
    def convolutions(self) -> tuple[Recurrent, ...]:
        return ()

    def recur(self, x: jax.Array, tokens: Tokens, state: Any, /, *own: Any) -> tuple[jax.Array, Any]:
        """Reads tokens from the start of the row, or those after others.

        Args:
          x: (batch, length, features), zeros where ``tokens.mask`` is False: such tokens must leave the state
            unchanged.
          state: that of the tokens before; None at the start of the row, when no state is asked for.
          *own: for a mixer that ``shares``, what its block alone is given. What blocks hand on passes by it.

        Returns:
          (batch, length, features) and the new state, or None.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it reads tokens")

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
        """Bool (batch, length), the real tokens at which another document begins; None without ids."""
        return tokens.starts(None if state is None else state.segment)

    def convolve(
        self, arrays: Sequence[jax.Array], tokens: Tokens, state: RecurrentState | None
    ) -> tuple[Sequence[jax.Array], tuple[Any, ...]]:
        """Each of ``arrays`` (batch, length, features) after its convolution, and the convolutions' new states; as they
        are without convolutions.
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
    """Zeros in ``dtype``, or in ``least`` where that is wider."""
    return jnp.zeros(shape, jnp.promote_types(dtype, least))


def accumulate(
    x: jax.Array, decay: jax.Array, tokens: Tokens, state: RecurrentState | None
) -> tuple[jax.Array, jax.Array]:
    """``linear_scan`` after ``state``, and the new memory (batch, channels), which padding leaves unchanged.

    Args:
      x, decay: (batch, length, channels).
    """
    before, segment = (None, None) if state is None else (state.memory, state.segment)
    if state is not None and tokens.mask is not None:
        x, decay = (jnp.where(tokens.mask[..., None], a, 0) for a in (x, decay))
    return linear_scan(x, decay, initial_state=before, starts=tokens.starts(segment), return_state=True)
