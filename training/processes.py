"""Training one model in several processes: joining them, the leading process, and synchronization."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

VARIABLES = {"coordinator": "JAX_COORDINATOR_ADDRESS", "processes": "JAX_NUM_PROCESSES", "process": "JAX_PROCESS_ID"}
"""The environment variable for each field of the config."""


def join(settings: Mapping[str, Any]) -> None:
    """Joins the other processes of the run, if there are any; must be called before any device is used.

    Args:
      settings: ``coordinator``, the address "host:port" of the first process; ``processes``, their number; and
        ``process``, the index of this one, from 0. Missing ones are taken from the environment variables in
        ``VARIABLES``; with the coordinator "auto", all are taken from the cluster's scheduler (Slurm, MPI, Kubernetes,
        Cloud TPU). With nothing given there is a single process.

    Raises:
      ValueError: only some of the three are given, ``process`` is out of range, or the other processes can't be
        reached.
    """
    given: dict[str, Any] = {
        field: settings.get(field) or os.environ.get(variable) for field, variable in VARIABLES.items()
    }
    if settings.get("process") == 0:
        given["process"] = 0
    if given["coordinator"] == "auto":
        jax.distributed.initialize()
        return
    missing = [field for field, value in given.items() if value in (None, "", -1)]
    if len(missing) == len(given):
        return
    if missing:
        what = ", ".join(f"distributed.{field} (or {VARIABLES[field]})" for field in missing)
        raise ValueError(f"several processes: {what} missing; coordinator, processes and process belong together")
    count, number = int(given["processes"]), int(given["process"])
    if not 0 <= number < count:
        raise ValueError(f"distributed.process={number} of distributed.processes={count}: they are numbered from 0")
    try:
        jax.distributed.initialize(given["coordinator"], count, number)
    except RuntimeError as error:
        raise ValueError(
            f"process {number} of {count} can't join the others at {given['coordinator']}: {str(error).splitlines()[0]}"
        ) from error


def leads() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


def any_of(flag: bool) -> bool:
    """Whether ``flag`` is true in any process; all processes must call it, and all get the same answer."""
    return flag if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def together(name: str) -> None:
    """Returns once all processes have reached this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
