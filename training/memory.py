"""Estimates the memory of a training step from its traced program, before compilation: that of its arguments and of the
program's temporaries (:mod:`primitives.memory`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from layers.rematerialization import policy
from primitives.memory import size, temporaries


def needed(jaxpr: Any, arguments: Any, parts: int) -> int:
    """Bytes of memory that a step takes on each device.

    Args:
      jaxpr: the jaxpr of the step.
      arguments: the step's arrays, with their shardings.
      parts: the number of devices over which the rows of a batch, and with them the temporaries, are split.
    """
    leaves = jax.tree.leaves(arguments)
    held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    return held + temporaries(jaxpr) // parts


def report(need: int, limit: int, config: Mapping[str, Any]) -> str:
    """A line on the memory that a step needs (``need`` and ``limit`` in bytes, 0 for an unknown limit), with
    suggestions where that is more than is available.
    """
    what = f"a step takes about {size(need)} of memory"
    if not limit:
        return what
    if need <= limit:
        return f"{what}, of {size(limit)}"
    ways = [
        f"--config.batch_size below {config['batch_size']}",
        f"--config.accumulate above {config['accumulate']} (same result, microbatches)",
    ]
    ways += {"nothing": ["--config.remat=dots (slower, keeps less) or block"], "dots": ["--config.remat=block"]}.get(
        policy(config["remat"]), []
    )
    return (
        f"{what}, and there are {size(limit)}: it will probably run out. "
        f"Try {', '.join(ways)}, a smaller model or shorter inputs"
    )


def available() -> int:
    """Bytes of memory of a device: for an accelerator as it reports; for a CPU the machine's, or the process's limit if
    lower; 0 if unknown.
    """
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    if limit:
        return int(limit)
    limits = []
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for group in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(group).read_text().strip() if Path(group).is_file() else ""
        limits += [int(text)] if text.isdecimal() else []
    return min(limits, default=0) // jax.local_device_count()
