"""Sequences that are split over devices: what the ops share to exchange as little as they can.

Where the ambient mesh (``jax.set_mesh``) has an axis ``sequence`` of more than one device, self-attention and the
recurrences exchange keys or states themselves, under ``jax.shard_map``; the compiler would gather whole sequences.
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
    """For mixers of pieces: the tokens of what is traced inside (windows, clusters, segments) are not the axis that
    devices share; the pieces are.
    """
    token = _folded.set(True)
    try:
        yield
    finally:
        _folded.reset(token)


def row_axes() -> tuple[str, ...]:
    """The axes of a mesh over which rows are split where this is traced: those of pieces over that of their sequence
    too.
    """
    return (*ROW_AXES, AXIS) if _folded.get() else ROW_AXES


def parts() -> int:
    """Devices among which sequences are split where this is traced; 1 where they are not, or already are."""
    if _folded.get():
        return 1
    mesh = jax.sharding.get_abstract_mesh()
    if AXIS not in mesh.axis_names or mesh.axis_types[mesh.axis_names.index(AXIS)] != AxisType.Auto:
        return 1
    return mesh.shape[AXIS]


def is_split() -> bool:
    """Whether sequences are split over devices where this is traced."""
    return parts() > 1


def objection(length: int) -> str | None:
    """Why a sequence of ``length`` tokens is not exchanged by an op itself, or None."""
    count = parts()
    if count == 1:
        return "sequences are not split over devices here"
    return f"{length} tokens can't be split into {count} equal parts" if length % count else None


def split(body: Callable[..., Any], arrays: tuple[Any, ...], axes: tuple[int | None, ...], out_axes: Any) -> Any:
    """``body(*arrays)`` on every device with its own part of the arrays.

    Args:
      arrays: arrays, or trees of them.
      axes: of each (of all leaves of a tree), which axis is the sequence; None where every device has the whole.
      out_axes: the same for what ``body`` returns, in its structure.
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
    # Partly manual programs must be compiled as a whole.
    return jax.jit(wrapped)(*arrays)


def shift(x: Any, by: int = 1) -> Any:
    """What the device ``by`` places before this one has, around the ring."""
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
    """``x`` of all devices in this one's group of ``among`` neighbors, one after the other along ``axis``."""
    count = jax.lax.axis_size(AXIS)
    groups = [list(range(first, first + among)) for first in range(0, count, among)]
    return jax.lax.all_gather(x, AXIS, axis=axis, tiled=True, axis_index_groups=groups)


def entering(
    transition: Any, state: jax.Array, initial: jax.Array | None, apply: Callable[[Any, jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """States of a linear recurrence at the borders between devices: (before this device's tokens, after the last
    device's).

    Each device sends its total transition and the state that its tokens alone would leave, and no token.

    Args:
      transition: of all of this device's tokens; a tree of arrays.
      state: after this device's tokens, from zeros.
      initial: before the first device's tokens; None is zeros.
      apply: (transition, state) to the state moved on by it.
    """
    transitions, states = jax.lax.all_gather((transition, state), AXIS)
    here = jax.lax.axis_index(AXIS)
    after = jnp.zeros_like(state) if initial is None else initial.astype(state.dtype)
    before = after
    # As many steps as devices, each on one state: the tokens' work is done by all devices at once.
    for device in range(jax.lax.axis_size(AXIS)):
        before = jnp.where(here == device, after, before)
        after = apply(jax.tree.map(lambda leaf, device=device: leaf[device], transitions), after) + states[device]
    return before, after


def groups(batch: int) -> int:
    """Into how many groups of rows :func:`hand_over` cuts a batch: as many as a device that holds rows has of them."""
    shape = jax.sharding.get_abstract_mesh().shape
    rows = math.prod(shape.get(axis, 1) for axis in ROW_AXES)
    return max(batch // rows, 1) if batch % rows == 0 else 1


def idle_share(batch: int) -> float:
    """The share of its time that a device has nothing to do in :func:`hand_over`."""
    return (parts() - 1) / (groups(batch) + parts() - 1)


def serially(
    step: Callable[[Any, Any, Any], tuple[Any, Any]],
    shared: Any,
    state: Any,
    tokens: tuple[Any, ...],
    axes: tuple[int, ...],
) -> Any:
    """A recurrence whose states can't be combined, over a sequence that devices share: :func:`hand_over` on each one's
    part.

    Args:
      step: (shared, state, tokens) of some rows to (state, what is said to the tokens, its axes like those of
        ``tokens[0]``).
      shared: what every device needs whole, as parameters.
      state: before the first token; each leaf (batch, ...).
      tokens: trees of arrays (batch, ...), None allowed.
      axes: which axis of each is the sequence.
    """
    number = groups(jax.tree.leaves(state)[0].shape[0])

    def body(shared: Any, state: Any, *tokens: Any) -> Any:
        return hand_over(functools.partial(step, shared), state, tokens, number)

    return split(body, (shared, state, *tokens), (None, None, *axes), axes[0])


def hand_over(step: Callable[[Any, Any], tuple[Any, Any]], state: Any, tokens: Any, number: int) -> Any:
    """A recurrence whose states can't be combined, on the devices of :func:`split` one after the other: each hands its
    state to the next.

    The batch is cut into groups of rows. While one device reads a group, the device before it reads the next group: of
    ``number`` + devices - 1 turns each device works in ``number`` (:func:`idle_share`).

    Args:
      step: (state, tokens) of one group to (state, what is said to the tokens).
      state: before the first device's tokens, the same on all; each leaf (batch, ...).
      tokens: this device's; each leaf (batch, ...).
      number: of groups (:func:`groups`); divides the batch.

    Returns:
      What ``step`` says to this device's tokens, each leaf (batch, ...).
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
        # A device with nothing to do repeats a group, whose result is not used: that delays no other device.
        working = (here > 0) & (group >= 0) & (group < number)
        left, said = step(jax.tree.map(lambda a, b: jnp.where(working, a, b), arrived, start), own)
        return shift(left), said

    _, said = jax.lax.scan(turn, jax.tree.map(lambda leaf: leaf[0], states), jnp.arange(number + devices - 1))
    said = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, here, number), said)
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), said)
