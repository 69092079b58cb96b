"""Sharding: the device mesh that the config describes, and the placement of batches and state on it.

    data       rows of the batch; the state is replicated
    fsdp       rows of the batch; each parameter is also split, and gathered where it is used
    tensor     columns or rows of kernels, by rules of the architecture
    sequence   the second axis of every array of the batch: tokens of a sequence, lines of an image

Programs are written for whole arrays and partitioned by the compiler. Nothing else in the repository places arrays,
except ops that communicate less than the compiler's version would, and kernels, which it can't partition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from layers.state import flatten
from primitives.sequence import ROW_AXES as ROWS
from suggestions import unknown
from zoo.backbones.model import Model

AXES = ("data", "fsdp", "tensor", "sequence")
SMALLEST = 1024
"""Parameters with fewer elements are replicated: gathering them would cost more than it saves."""

Rules = Mapping[str, tuple[str | None, ...]]
"""Parameter names, and for each axis of the parameter the mesh axis over which it is split, or None."""


def create_mesh(sizes: Mapping[str, int]) -> Mesh:
    """Makes the mesh.

    Args:
      sizes: number of devices along each of ``AXES``, 1 where missing; -1, allowed for one axis, means all remaining
        devices. Empty means all devices along "data".

    Raises:
      ValueError: an unknown axis, an invalid size, or sizes that do not fit the number of devices and processes.
    """
    for axis in sizes:
        if axis not in AXES:
            raise ValueError(unknown("mesh axis", axis, AXES))
    shape = {axis: sizes.get(axis, 1) for axis in AXES}
    if not sizes:
        shape["data"] = -1
    named = ", ".join(f"mesh.{axis}={size}" for axis, size in shape.items() if size != 1) or "mesh.data=1"
    free = [axis for axis, size in shape.items() if size == -1]
    devices = jax.devices()
    given = math.prod(size for size in shape.values() if size != -1)
    if len(free) > 1 or any(size < 1 for size in shape.values() if size != -1):
        raise ValueError(
            f"{named}: each size is at least 1, or -1 for all devices that are left, which one axis can take"
        )
    if given > len(devices) or (free and len(devices) % given):
        raise ValueError(
            f"{named}, but there are {len(devices)} devices: the sizes multiplied are {given}; --config.mesh.data=-1 "
            f"takes all that are left"
        )
    for axis in free:
        shape[axis] = len(devices) // given
    count = math.prod(shape.values())
    if jax.process_count() > 1 and count != len(devices):
        raise ValueError(
            f"{named} takes {count} of {len(devices)} devices: with several processes the mesh takes them all"
        )
    mesh = Mesh(np.asarray(devices[:count]).reshape(*shape.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    if (shape["data"] * shape["fsdp"]) % jax.process_count():
        raise ValueError(
            f"{named}: data times fsdp, {shape['data'] * shape['fsdp']}, is not divisible by the {jax.process_count()} "
            f"processes"
        )
    return mesh


def row_parts(mesh: Mesh) -> int:
    """The number of parts into which the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def check_batch(mesh: Mesh, batch_size: int, accumulate: int) -> None:
    """Refuses a batch size that can't be divided equally over microbatches and devices.

    Raises:
      ValueError: the message has the numbers and the nearest batch size that fits.
    """
    if batch_size < 1 or accumulate < 1:
        raise ValueError(f"batch_size={batch_size} and accumulate={accumulate} must be at least 1")
    parts = accumulate * row_parts(mesh)
    if batch_size % parts:
        fit = max(round(batch_size / parts), 1) * parts
        raise ValueError(
            f"batch_size={batch_size} is not divisible by accumulate={accumulate} times {row_parts(mesh)} devices "
            "(mesh axes data and fsdp): "
            f"--config.batch_size={fit} would be"
        )


def of_state(mesh: Mesh) -> NamedSharding:
    """Replicated: a copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def of_parameter(mesh: Mesh, name: str, shape: tuple[int, ...], rules: Rules) -> NamedSharding:
    """Sharding of a parameter.

    The rule for ``name`` in ``rules`` places the mesh axis ``tensor``. ``fsdp``, and without a rule then also
    ``tensor``, splits the largest remaining axis of the parameter that it divides. Small parameters without a rule, and
    those that neither divides, are replicated.

    Raises:
      ValueError: a rule splits an axis that its mesh axis does not divide, or has a different number of axes than the
        parameter.
    """
    axes: list[str | None] = [None] * len(shape)
    rule = rules.get(name)
    if rule is not None and all(axis is None or mesh.shape[axis] == 1 for axis in rule):
        rule = None
    if rule is not None:
        if len(rule) != len(shape):
            raise ValueError(f"the sharding rule {rule} of {name} has {len(rule)} axes, and the parameter is {shape}")
        for number, axis in enumerate(rule):
            if axis is not None and shape[number] % mesh.shape[axis]:
                raise ValueError(
                    f"{name} is {shape}: its axis {number} can't be split into mesh.{axis}={mesh.shape[axis]} equal "
                    f"parts"
                )
        axes = [axis if axis and mesh.shape[axis] > 1 else None for axis in rule]
    if math.prod(shape) >= SMALLEST:
        for axis in ("fsdp",) if rule is not None else ("fsdp", "tensor"):
            whole = [n for n, size in enumerate(shape) if axes[n] is None and size % mesh.shape[axis] == 0]
            if mesh.shape[axis] > 1 and whole:
                axes[max(whole, key=lambda n: shape[n])] = axis
    return NamedSharding(mesh, PartitionSpec(*axes))


def of_tree(mesh: Mesh, state: Any, rules: Rules) -> Any:
    """Shardings of a state: parameters by :func:`of_parameter`; arrays with a parameter's name and shape (moments,
    averages) like the parameter; "carry" by rows; the rest is replicated.
    """
    shapes = {name: leaf.shape for name, leaf in state["params"].items()}

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = path[-1].key if path and isinstance(path[-1], jax.tree_util.DictKey) else None
        if shapes.get(name) != leaf.shape:
            return of_state(mesh)
        return of_parameter(mesh, str(name), leaf.shape, rules)

    places = jax.tree_util.tree_map_with_path(place, state)
    behind = of_rows(mesh, leading=1)  # the axis of microbatches
    return places | ({"carry": jax.tree.map(lambda _: behind, state["carry"])} if "carry" in state else {})


def of_rows(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of arrays whose axis ``leading`` is the rows of a batch, such as the carry of a stream."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, ROWS))


def of_batch(mesh: Mesh, shape: tuple[int, ...], leading: int = 0) -> NamedSharding:
    """Sharding of an array of a batch: its axis ``leading`` (1 where microbatches come first) is the rows, the next one
    the sequence.

    Raises:
      ValueError: the sequence can't be split into equal parts.
    """
    parts = mesh.shape["sequence"]
    axes: list[Any] = [*(None,) * leading, ROWS]
    if parts > 1 and len(shape) > leading + 1:
        if shape[leading + 1] % parts:
            raise ValueError(
                f"an array of the batch has {shape[leading + 1]} tokens (or lines), which mesh.sequence={parts} "
                "devices can't share equally"
            )
        axes.append("sequence")
    return NamedSharding(mesh, PartitionSpec(*axes))


def place_batch(mesh: Mesh, batch: Mapping[str, np.ndarray], leading: int = 0) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch on its devices.

    Raises:
      ValueError: as :func:`of_batch`.
    """
    return {
        name: jax.make_array_from_process_local_data(of_batch(mesh, rows.shape, leading), rows)
        for name, rows in batch.items()
    }


def place(tree: Any, shardings: Any) -> Any:
    """Puts a tree of arrays on the devices by their shardings."""
    return jax.device_put(tree, shardings)


def of_model(mesh: Mesh) -> Callable[[nnx.Module], dict[str, NamedSharding]] | None:
    """The ``shardings`` argument of ``zoo.create``, by which a model's parameters are created already split over
    devices; None where they are not split.
    """
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return None

    def places(model: nnx.Module) -> dict[str, NamedSharding]:
        rules = rules_of(model)
        return {name: of_parameter(mesh, name, leaf.shape, rules) for name, leaf in flatten(model, nnx.Param).items()}

    return places


def rules_of(model: Any) -> Rules:
    """The sharding rules of a model of the zoo; empty for other models."""
    return model.sharding_rules() if isinstance(model, Model) else {}
