"""Kernels on a mesh: the compiler splits programs over devices, but no Pallas call, so that each device calls the
kernel on its own part.

Rows of a batch are split over ``data`` and ``fsdp`` as batches are, heads (or channels) over ``tensor`` as projections
are. No row needs another, and no head: what travels are the gradients of arrays that all rows share. Where heads can't
be split the devices of ``tensor`` compute the same; where rows can't, no kernel serves.

The axes of a call's arrays have a letter each: ``b`` rows of the batch, ``h`` heads (groups, channels), any other what
a device needs whole. An axis of one row or head for all, every device has.
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
"""The axes of a mesh over which heads are split."""


def is_split() -> bool:
    """Whether the compiler splits what is traced here over devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and bool(_left(mesh))


def splits_heads() -> bool:
    """Whether the heads that a kernel meets may be some of an op's: those of its device."""
    return any(axis in _parts() for axis in HEAD_AXES)


def _left(mesh: AbstractMesh, *kinds: AxisType) -> dict[str, int]:
    """The axes, and their sizes, that no ``jax.shard_map`` around here has taken; or of them those of some kinds."""
    kinds = kinds or (AxisType.Auto, AxisType.Explicit)
    return {
        name: mesh.shape[name] for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind in kinds
    }


def objection(call: Call) -> str | None:
    """Why the devices of the mesh can't each have a part of the call, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    others = [
        *_left(mesh, AxisType.Explicit),
        *(name for name in _parts() if name not in (*sequence.row_axes(), *HEAD_AXES)),
    ]
    if others:
        return f"the mesh splits along {others[0]!r} what a kernel needs whole; call it inside jax.shard_map"
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
    """What one device has of the call: shapes in place of arrays."""
    places = _places(call)

    def cut(x: Any, word: str) -> Any:
        shape = tuple(n // _count(axes) for n, axes in zip(x.shape, _cuts(word, places, x.shape), strict=True))
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return call.replace(**{name: cut(x, word) for name, (x, word) in call.arrays.items()})


def run(function: Callable[[C], tuple[Any, ...]], call: C) -> tuple[Any, ...]:
    """``function(call)``, on every device with its part."""
    places = _places(call)
    mapped = jax.shard_map(
        lambda parts: function(call.replace(**parts)),
        in_specs=({name: PartitionSpec(*_cuts(word, places, x.shape)) for name, (x, word) in call.arrays.items()},),
        out_specs=tuple(PartitionSpec(*_cuts(word, places)) for word in call.results),
        # All that are left, those of one device too: a kernel is not to meet an axis that is the compiler's.
        axis_names=set(_left(jax.sharding.get_abstract_mesh())),
        check_vma=False,
    )
    return jax.jit(mapped)({name: x for name, (x, _) in call.arrays.items()})


def split_call(body: Callable[[C], tuple[Any, ...]], call: C, **others: int | None) -> tuple[Any, ...]:
    """``body(call)`` of an op on every device, with its own tokens: of the axes of the call's arrays and results those
    called ``l``.

    ``others`` names axes of arrays that are split along another.
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
    """The axes of the mesh over which each letter's are split: heads only if all of them can be."""
    axes = _axes(HEAD_AXES)
    numbers = {
        x.shape[axis] for x, word in call.arrays.values() for axis, letter in enumerate(word) if letter == "h"
    } - {1}
    can = bool(numbers) and all(n % _count(axes) == 0 for n in numbers)
    return {"b": _axes(sequence.row_axes()), "h": axes if can else ()}


def _parts() -> dict[str, int]:
    """The axes along which the compiler splits arrays here, and into how many parts."""
    return {name: size for name, size in _left(jax.sharding.get_abstract_mesh()).items() if size > 1}


def _axes(wanted: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(axis for axis in wanted if axis in _parts())


def _count(axes: tuple[str, ...]) -> int:
    return math.prod(_parts()[axis] for axis in axes)


def _cuts(word: str, places: dict[str, tuple[str, ...]], shape: tuple[int, ...] | None = None) -> list[tuple[str, ...]]:
    """The axes of the mesh over which each axis of an array is split."""
    return [
        () if shape is not None and shape[axis] == 1 else places.get(letter, ()) for axis, letter in enumerate(word)
    ]
