"""Kernels on a mesh: the compiler partitions programs over devices, but not Pallas calls, so that each device calls the
kernel on its own part.

Rows of a batch are split over ``data`` and ``fsdp``, as batches are, and heads (or channels) over ``tensor``, as
projections are. Rows and heads are independent: only gradients of arrays that all rows share are communicated. If heads
can't be split, the devices of ``tensor`` all compute the same; if rows can't be split, no kernel is used.

Each axis of a call's arrays has a letter: ``b`` for rows of the batch, ``h`` for heads (groups, channels), any other
for an axis that is not split. An axis of size 1 is replicated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from pallas_kernels.call import Call
from primitives import sequence

C = TypeVar("C", bound=Call)

HEAD_AXES = ("tensor",)
"""The mesh axes over which heads are split."""


def is_split() -> bool:
    """Whether the compiler partitions the program traced here over devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and bool(_left(mesh))


def splits_heads() -> bool:
    """Whether a kernel may receive only some of an op's heads, those of its device."""
    return any(axis in _parts() for axis in HEAD_AXES)


def _left(mesh: AbstractMesh, *kinds: AxisType) -> dict[str, int]:
    """The mesh axes and their sizes that no surrounding ``jax.shard_map`` has made manual, or those of the given
    kinds.
    """
    kinds = kinds or (AxisType.Auto, AxisType.Explicit)
    return {
        name: mesh.shape[name] for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind in kinds
    }


def objection(call: Call) -> str | None:
    """Why the call can't be split over the devices of the mesh, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    others = [
        *_left(mesh, AxisType.Explicit),
        *(name for name in _parts() if name not in (*sequence.row_axes(), *HEAD_AXES)),
    ]
    if others:
        return f"the mesh splits along {others[0]!r} arrays that a kernel needs whole; call it inside jax.shard_map"
    axes = _axes(sequence.row_axes())
    count = _count(axes)
    rows = max(
        (x.shape[axis] for x, word in call.arrays.values() for axis, letter in enumerate(word) if letter == "b"),
        default=1,
    )
    return (
        f"{rows} rows can't be shared equally by the {count} devices of the mesh's {' and '.join(axes)}"
        if rows % count
        else None
    )


def part(call: C) -> C:
    """One device's part of the call, with shapes in place of arrays."""
    places = _places(call)

    def cut(x: Any, word: str) -> Any:
        shape = tuple(n // _count(axes) for n, axes in zip(x.shape, _cuts(word, places, x.shape), strict=True))
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return call.replace(**{name: cut(x, word) for name, (x, word) in call.arrays.items()})


def run(function: Callable[[C], tuple[Any, ...]], call: C) -> tuple[Any, ...]:
    """Runs ``function(call)`` on every device, with its part of the call."""
    places = _places(call)
    mapped = jax.shard_map(
        lambda parts: function(call.replace(**parts)),
        in_specs=({name: PartitionSpec(*_cuts(word, places, x.shape)) for name, (x, word) in call.arrays.items()},),
        out_specs=tuple(PartitionSpec(*_cuts(word, places)) for word in call.results),
        # All remaining axes, also those of size 1: inside a kernel's shard_map no axis may be the compiler's.
        axis_names=set(_left(jax.sharding.get_abstract_mesh())),
        check_vma=False,
    )
    return jax.jit(mapped)({name: x for name, (x, _) in call.arrays.items()})


def split_call(body: Callable[[C], tuple[Any, ...]], call: C, **others: int | None) -> tuple[Any, ...]:
    """Runs ``body(call)`` of an op on every device with its own tokens: arrays and results are split along the axis
    with the letter ``l``.

    ``others`` gives the axis for arrays that are split along another one, by name.
    """
    arrays = call.arrays
    axes = {name: _tokens(word) for name, (_, word) in arrays.items()} | others
    names = tuple(arrays)
    return sequence.split(
        lambda *parts: body(call.replace(**dict(zip(names, parts, strict=True)))),
        tuple(x for x, _ in arrays.values()),
        tuple(axes[name] for name in names),
        tuple(map(_tokens, call.results)),
    )


def _tokens(word: str) -> int | None:
    return word.index("l") if "l" in word else None


def _places(call: Call) -> dict[str, tuple[str, ...]]:
    """The mesh axes over which the axes of each letter are split; heads only if those of all arrays can be."""
    axes = _axes(HEAD_AXES)
    numbers = {
        x.shape[axis] for x, word in call.arrays.values() for axis, letter in enumerate(word) if letter == "h"
    } - {1}
    can = bool(numbers) and all(n % _count(axes) == 0 for n in numbers)
    return {"b": _axes(sequence.row_axes()), "h": axes if can else ()}


def _parts() -> dict[str, int]:
    """The mesh axes over which the compiler partitions arrays here, with their sizes."""
    return {name: size for name, size in _left(jax.sharding.get_abstract_mesh()).items() if size > 1}


def _axes(wanted: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(axis for axis in wanted if axis in _parts())


def _count(axes: tuple[str, ...]) -> int:
    return math.prod(_parts()[axis] for axis in axes)


def _cuts(word: str, places: dict[str, tuple[str, ...]], shape: tuple[int, ...] | None = None) -> list[tuple[str, ...]]:
    """The mesh axes over which each axis of an array is split."""
    return [
        () if shape is not None and shape[axis] == 1 else places.get(letter, ()) for axis, letter in enumerate(word)
    ]
