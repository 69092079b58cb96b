"""Devices: the mesh named in the config, and where batches and state live on it.

The batch is split over the axis ``data``; the state is replicated. What to split otherwise is
decided here alone: everything else asks for :func:`of_batch` and :func:`of_state`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tasks.registry import unknown

AXES = ("data",)


def create_mesh(sizes: Mapping[str, int]) -> Mesh:
    """Makes the mesh.

    Args:
      sizes: devices along each of ``AXES``; -1 means all there are.

    Raises:
      ValueError: an unknown axis, or more devices than there are.
    """
    for axis in sizes:
        if axis not in AXES:
            raise ValueError(unknown("mesh axis", axis, AXES))
    devices = jax.devices()
    count = sizes.get("data", -1)
    count = len(devices) if count == -1 else count
    if not 1 <= count <= len(devices):
        raise ValueError(f"mesh.data={count}, but there are {len(devices)} devices: --config.mesh.data=-1 takes all")
    return Mesh(np.asarray(devices[:count]), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(mesh: Mesh, batch_size: int, accumulate: int) -> None:
    """Refuses a batch that the microbatches and devices can't share equally.

    Raises:
      ValueError: with the numbers, and the nearest batch size that fits.
    """
    if batch_size < 1 or accumulate < 1:
        raise ValueError(f"batch_size={batch_size} and accumulate={accumulate} must be at least 1")
    parts = accumulate * mesh.shape["data"]
    if batch_size % parts:
        fit = max(round(batch_size / parts), 1) * parts
        raise ValueError(
            f"batch_size={batch_size} is not divisible by accumulate={accumulate} times {mesh.shape['data']} devices (mesh axis data): "
            f"--config.batch_size={fit} would be"
        )


def of_state(mesh: Mesh) -> NamedSharding:
    """Sharding of parameters, statistics and optimiser state: a copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def of_batch(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of a batch over ``data`` along its axis ``leading`` (1 where microbatches come first)."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, "data"))


def place_batch(mesh: Mesh, batch: Mapping[str, np.ndarray], leading: int = 0) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch on its devices."""
    sharding = of_batch(mesh, leading)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def place_state(mesh: Mesh, state: Any) -> Any:
    """Puts a state on the devices."""
    return jax.device_put(state, of_state(mesh))
