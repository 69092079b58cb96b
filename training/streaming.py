"""Memory across batches: in a stream of tokens, the model's state is passed from each batch to the next.

Row r of a batch continues where row r of the previous batch ended (:class:`tasks.Streams`). The model reads it with its
own ``extend`` from the state after the previous batch. The gradient stops at that state: backpropagation through time
is truncated at the start of each batch. A row at the start of its lane begins with an empty state.

The carry is part of the loop's state and saved with it: a tree of arrays, (microbatches, rows, ...) in training and
(rows, ...) in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Carry = Any


def empty(make_model: Callable[[], Any], rows: int, microbatches: int | None = None) -> Carry:
    """A carry with the shapes of the model's state; its values are never read, because each lane begins with a start.

    Args:
      make_model: returns the model; it is traced.
      rows: rows of a microbatch.
      microbatches: None for a carry without this axis.

    Raises:
      ValueError: the model can't read a sequence piece by piece in constant memory.
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
            f'order="stream" passes the state of the model on to the next batch, in constant memory, and this model '
            f"can't do that: {error}. Take a recurrent or a windowed one, such as mamba_nano or transformer_xl_nano, "
            f'or order="shuffled"'
        ) from error
    axes = () if microbatches is None else (microbatches,)
    return jax.tree.map(lambda leaf: jnp.zeros((*axes, *leaf.shape), leaf.dtype), shapes)


class Reading:
    """A model as a task sees it in a stream: its call continues from the carry.

    Attributes:
      after: the carry after the call; None before it.
    """

    def __init__(self, model: Any, carry: Carry, start: jax.Array) -> None:
        """Prepares the state before the call.

        Args:
          model: the model.
          carry: the carry after the previous batch.
          start: bool (rows,), True for rows at the start of their lane.
        """
        self._model, self.after = model, None
        begun = model.init_state(start.shape[0])

        def before(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(start.reshape(-1, *(1,) * (new.ndim - 1)), new, jax.lax.stop_gradient(old))

        self._before = jax.tree.map(before, carry, begun)

    def __call__(self, tokens: jax.Array, **known: Any) -> jax.Array:
        """As ``model.extend``, but returns only the logits.

        Raises:
          ValueError: a second call; its tokens would follow those of the first.
        """
        if self.after is not None:
            raise ValueError("a batch of a stream is read once: the task calls the model a second time")
        logits, after = self._model.extend(tokens, self._before, **known)
        self.after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, self._before)
        return jnp.asarray(logits)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
