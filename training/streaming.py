"""Memory across batches: what a model has read of a stream of tokens is handed from each batch to the next.

Row r of a batch goes on where row r of the batch before ended (:class:`tasks.Streams`). The model reads it with its own
``extend`` from the state that the batch before left, whose gradient stops there: backpropagation through time is cut at
each batch, whose length is thus how far gradients reach. A row at the start of its lane reads from an empty state.

The carry is a part of the loop's state, a tree of arrays (microbatches, rows, ...) in training and (rows, ...) in
evaluation, and is saved with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Carry = Any


def empty(make_model: Callable[[], Any], rows: int, microbatches: int | None = None) -> Carry:
    """A carry of the shape of the model's states; its numbers are never read, because each lane begins with a start.

    Args:
      make_model: gives the model; it is traced.
      rows: of a microbatch.
      microbatches: None for a carry without this axis.

    Raises:
      ValueError: a model that can't be read piece by piece in constant memory.
    """

    def state() -> Any:
        model = make_model()
        if not hasattr(model, "extend"):
            raise ValueError("it has no extend()")
        if getattr(model, "position", None) is not None:
            raise ValueError(f"its table of positions ends at max_length={model.config.max_length}")
        return model.init_state(rows)

    try:
        shapes = jax.eval_shape(state)
    except ValueError as error:
        raise ValueError(
            f'order="stream" hands what a model has read on to the next batch, in constant memory, and this model '
            f"can't do that: {error}. Take a recurrent or a windowed one, such as mamba_nano or transformer_xl_nano, "
            f'or order="shuffled"'
        ) from error
    axes = () if microbatches is None else (microbatches,)
    return jax.tree.map(lambda leaf: jnp.zeros((*axes, *leaf.shape), leaf.dtype), shapes)


class Reading:
    """A model as a task sees it in a stream: its call reads on from the carry.

    Attributes:
      after: the carry after the call; None before it.
    """

    def __init__(self, model: Any, carry: Carry, start: jax.Array) -> None:
        """Args:
        carry: what the batch before left.
        start: bool (rows,), rows before which there is nothing.
        """
        self._model, self.after = model, None
        begun = model.init_state(start.shape[0])

        def before(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(start.reshape(-1, *(1,) * (new.ndim - 1)), new, jax.lax.stop_gradient(old))

        self._before = jax.tree.map(before, carry, begun)

    def __call__(self, tokens: jax.Array, **known: Any) -> jax.Array:
        """As ``model.extend``; gives its logits.

        Raises:
          ValueError: a second call, whose tokens would follow those of the first.
        """
        if self.after is not None:
            raise ValueError("a batch of a stream is read once: the task calls the model a second time")
        logits, after = self._model.extend(tokens, self._before, **known)
        self.after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, self._before)
        return jnp.asarray(logits)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
