"""Sequences that are split over devices: what ops share to communicate as little as possible.

Where the ambient mesh (``jax.set_mesh``) has an axis ``sequence`` of more than one device, self-attention and
recurrences exchange keys or states explicitly, under ``jax.shard_map``; the compiler on its own would gather whole
sequences.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

AXIS = "sequence"

ROW_AXES = ("data", "fsdp")
"""The axes of a mesh over which the rows of a batch are split."""


_folded: contextvars.ContextVar[bool] = contextvars.ContextVar("folded", default=False)


@contextlib.contextmanager
def folded() -> Iterator[None]:
    """For mixers of pieces (windows, clusters, segments): the token axis of what is traced inside is not split over
    devices; the batch of pieces is.
    """
    token = _folded.set(True)
    try:
        yield
    finally:
        _folded.reset(token)


def row_axes() -> tuple[str, ...]:
    """The mesh axes over which rows are split in the current trace; inside :func:`folded` these include the sequence
    axis.
    """
    return (*ROW_AXES, AXIS) if _folded.get() else ROW_AXES


def parts() -> int:
    """The number of devices over which sequences are split in the current trace; 1 if they are not split, or are split
    already.
    """
    if _folded.get():
        return 1
    mesh = jax.sharding.get_abstract_mesh()
    if AXIS not in mesh.axis_names or mesh.axis_types[mesh.axis_names.index(AXIS)] != AxisType.Auto:
        return 1
    return mesh.shape[AXIS]


def is_split() -> bool:
    """Whether sequences are split over devices in the current trace."""
    return parts() > 1


def objection(length: int) -> str | None:
    """The reason why an op can't handle a split sequence of ``length`` tokens itself, or None if it can."""
    count = parts()
    if count == 1:
        return "sequences are not split over devices here"
    return f"{length} tokens can't be split into {count} equal parts" if length % count else None


def split(body: Callable[..., Any], arrays: tuple[Any, ...], axes: tuple[int | None, ...], out_axes: Any) -> Any:
    """Runs ``body(*arrays)`` on every device with its own part of the arrays.

    Args:
      arrays: arrays, or trees of them.
      axes: for each array (or all leaves of a tree) the sequence axis; None if every device has the whole array.
      out_axes: the same for the result of ``body``, in its structure.
    """

    def spec(axis: int | None) -> PartitionSpec:
        return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, AXIS)

    wrapped = jax.shard_map(
        body,
        in_specs=tuple(spec(axis) for axis in axes),
        out_specs=jax.tree.map(spec, out_axes, is_leaf=lambda axis: axis is None),
        axis_names={AXIS},
        check_vma=False,
    )
    # Programs that are only partly manual must run under jit.
    return jax.jit(wrapped)(*arrays)


def shift(x: Any, by: int = 1) -> Any:
    """The value ``x`` of the device ``by`` places before this one, around the ring."""
    count = jax.lax.axis_size(AXIS)
    pairs = [(source, (source + by) % count) for source in range(count)]
    return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, AXIS, pairs), x)


def tail(x: jax.Array, size: int, first: jax.Array | int = 0, axis: int = 1) -> jax.Array:
    """The last ``size`` tokens of the device before this one; on the first device ``first``."""
    before = shift(jax.lax.slice_in_dim(x, x.shape[axis] - size, None, axis=axis))
    return jnp.where(jax.lax.axis_index(AXIS) > 0, before, first)


def head(x: jax.Array, size: int, last: jax.Array | int = 0, axis: int = 1) -> jax.Array:
    """The first ``size`` tokens of the device after this one; on the last device ``last``."""
    after = shift(jax.lax.slice_in_dim(x, 0, size, axis=axis), -1)
    return jnp.where(jax.lax.axis_index(AXIS) < jax.lax.axis_size(AXIS) - 1, after, last)


def gather(x: jax.Array, axis: int, among: int) -> jax.Array:
    """``x`` of all devices in this one's group of ``among`` neighbors, concatenated along ``axis``."""
    count = jax.lax.axis_size(AXIS)
    groups = [list(range(first, first + among)) for first in range(0, count, among)]
    return jax.lax.all_gather(x, AXIS, axis=axis, tiled=True, axis_index_groups=groups)


def entering(
    transition: Any, state: jax.Array, initial: jax.Array | None, apply: Callable[[Any, jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """States of a linear recurrence at the borders between devices: (before this device's tokens, after the last
    device's).

    Each device sends only its total transition and the final state of its own tokens from zeros, but no tokens.

    Args:
      transition: total transition of this device's tokens, a tree of arrays.
      state: the state after this device's tokens, from zeros.
      initial: the state before the first device's tokens; None means zeros.
      apply: maps (transition, state) to the state after the transition.
    """
    transitions, states = jax.lax.all_gather((transition, state), AXIS)
    here = jax.lax.axis_index(AXIS)
    after = jnp.zeros_like(state) if initial is None else initial.astype(state.dtype)
    before = after
    # One step per device, each on a single state: the work on tokens is parallel over devices.
    for device in range(jax.lax.axis_size(AXIS)):
        before = jnp.where(here == device, after, before)
        after = apply(jax.tree.map(lambda leaf, device=device: leaf[device], transitions), after) + states[device]
    return before, after


def groups(batch: int) -> int:
    """The number of groups of rows into which :func:`hand_over` splits a batch: the number of rows per device."""
    shape = jax.sharding.get_abstract_mesh().shape
    rows = math.prod(shape.get(axis, 1) for axis in ROW_AXES)
    return max(batch // rows, 1) if batch % rows == 0 else 1


def idle_share(batch: int) -> float:
    """The fraction of time that a device is idle in :func:`hand_over`."""
    return (parts() - 1) / (groups(batch) + parts() - 1)


def serially(
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    shared: Any,
    state: Any,
    tokens: tuple[Any, ...],
    axes: tuple[int, ...],
) -> Any:
    """Runs a recurrence whose states can't be combined over a split sequence, with :func:`hand_over` on each device's
    part.

    Args:
      step: maps (shared, state, tokens) of some rows to (state, outputs of the tokens, with axes like those of
        ``tokens[0]``).
      shared: what every device needs whole, such as parameters.
      state: the state before the first token; each leaf (batch, ...).
      tokens: trees of arrays (batch, ...), None allowed.
      axes: the sequence axis of each.
    """
    number = groups(jax.tree.leaves(state)[0].shape[0])

    def body(shared: Any, state: Any, *tokens: Any) -> Any:
        return hand_over(functools.partial(step, shared), state, tokens, number)

    return split(body, (shared, state, *tokens), (None, None, *axes), axes[0])


def hand_over(step: Callable[[Any, Any], tuple[Any, Any]], state: Any, tokens: Any, number: int) -> Any:
    """Runs a recurrence whose states can't be combined on the devices of :func:`split` in turn: each passes its state
    to the next.

    The batch is split into groups of rows, as in pipeline parallelism: while one device reads a group, the device
    before it reads the next group. Of ``number`` + devices - 1 turns each device works in ``number``
    (:func:`idle_share`).

    Args:
      step: maps (state, tokens) of one group to (state, outputs of the tokens).
      state: the state before the first device's tokens, the same on all devices; each leaf (batch, ...).
      tokens: this device's tokens; each leaf (batch, ...).
      number: number of groups (:func:`groups`), which must divide the batch.

    Returns:
      The outputs of ``step`` for this device's tokens, each leaf (batch, ...).
    """
    here, devices = jax.lax.axis_index(AXIS), jax.lax.axis_size(AXIS)

    def cut(leaf: jax.Array) -> jax.Array:
        # Rows of a group lie ``number`` apart, so that every device that holds rows has some of each group.
        return jnp.swapaxes(leaf.reshape(-1, number, *leaf.shape[1:]), 0, 1)

    states, pieces = jax.tree.map(cut, (state, tokens))

    def turn(arrived: Any, time: jax.Array) -> tuple[Any, Any]:
        group = time - here
        start, own = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, jnp.clip(group, 0, number - 1), keepdims=False),
            (states, pieces),
        )
        # An idle device repeats a group, whose result is not used: this delays no other device.
        working = (here > 0) & (group >= 0) & (group < number)
        left, said = step(jax.tree.map(lambda a, b: jnp.where(working, a, b), arrived, start), own)
        return shift(left), said

    _, said = jax.lax.scan(turn, jax.tree.map(lambda leaf: leaf[0], states), jnp.arange(number + devices - 1))
    said = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, here, number), said)
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), said)
