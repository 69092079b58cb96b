"""How much memory a step takes, estimated from its traced program before anything is compiled.

What XLA does is simplified to one rule: a result is an array in memory, from the operation that makes it to the last
  that
needs it, except elementwise results larger than what they are computed from (broadcasts, masks), which are fused into
what reads them. Results that take the place of arguments take nothing. The estimate is the arguments of the step and
the greatest sum of arrays that live at one time: within a factor of two of what the compiler says on CPUs, over the
families of the zoo (tests/training/test_memory_estimate.py has the test; measured 0.6 to 1.2).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from primitives import operations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MATERIALIZED = _names(
    """dot_general ragged_dot conv_general_dilated argmax argmin sort top_k approx_top_k gather
    concatenate stack dynamic_update_slice pad rng_bit_generator threefry2x32 random_bits fft cholesky triangular_solve lu qr eigh svd
    scan while cond shard_map pallas_call core_map mpmd_map all_gather all_to_all ppermute psum"""
)
_MATERIALIZED_KINDS = ("reduce_", "cum", "scatter", "select_and_", "custom_call", "ffi_call")
_SAME = _names("reshape squeeze expand_dims stop_gradient sharding_constraint optimization_barrier name")
_INLINED = _names(
    "jit pjit closed_call core_call call checkpoint remat remat2 custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr "
    "run_state"
)


class _Buffer:
    """An array in memory; one of ``size`` 0 is an argument, which exists throughout."""

    def __init__(self, size: int) -> None:
        self.size = size


_Sources = frozenset[_Buffer]


class _Liveness:
    """The operations of a jaxpr that make arrays, in order: what each reads, makes, and needs besides while it runs."""

    def __init__(self) -> None:
        self.steps: list[tuple[_Sources, list[_Buffer], int]] = []

    def make(self, reads: _Sources, sizes: Sequence[int], inner: int = 0) -> list[_Sources]:
        made = [_Buffer(size) for size in sizes]
        self.steps.append((reads, made, inner))
        return [frozenset([buffer]) for buffer in made]

    def add(self, jaxpr: Any, arguments: Sequence[_Sources]) -> list[_Sources]:
        """Adds the operations of ``jaxpr``, and returns the sources of its results."""
        known: dict[Any, _Sources] = dict(zip(jaxpr.invars, arguments, strict=True))

        def read(variables: Any) -> list[_Sources]:
            return [known.get(v, frozenset()) if not hasattr(v, "val") else frozenset() for v in variables]

        for equation in jaxpr.eqns:
            name, given, sizes = (
                equation.primitive.name,
                read(equation.invars),
                [_bytes(v.aval) for v in equation.outvars],
            )
            reads: _Sources = frozenset().union(*given)
            inner = [_inside(value) for value in _jaxprs(equation.params)]
            if (program := operations.computed(equation)) is not None:
                made = self.add(_inside(program), given)
            elif name in _INLINED and len(inner) == 1 and len(inner[0].invars) == len(given):
                made = self.add(inner[0], given)
            elif name in _MATERIALIZED or name.startswith(_MATERIALIZED_KINDS):
                made = self.make(
                    reads,
                    sizes,
                    max((_loop_peak(name, equation.params, body) for body in inner), default=0)
                    if name != "pallas_call"
                    else 0,
                )
            elif name in _SAME and len(given) == len(sizes):
                made = given
            elif sum(buffer.size for buffer in reads) >= sum(sizes):
                made = self.make(reads, sizes)
            else:
                made = [reads] * len(sizes)
            known.update(zip(equation.outvars, made, strict=True))
        return read(jaxpr.outvars)

    def peak(self, results: Iterable[_Sources]) -> int:
        """The most bytes that live at one time; ``results`` live to the end."""
        last = {buffer: number for number, (reads, made, _) in enumerate(self.steps) for buffer in (*reads, *made)}
        last |= {buffer: len(self.steps) for sources in results for buffer in sources}
        live = most = 0
        ending: dict[int, int] = {}
        for buffer, number in last.items():
            ending[number] = ending.get(number, 0) + buffer.size
        for number, (_, made, inner) in enumerate(self.steps):
            live += sum(buffer.size for buffer in made)
            most = max(most, live + inner)
            live -= ending.get(number, 0)
        return most


def _bytes(aval: Any) -> int:
    dtype = getattr(aval, "dtype", None)
    itemsize = getattr(dtype, "itemsize", 4)
    return int(np.prod(getattr(aval, "shape", ()), dtype=np.int64)) * itemsize


def _jaxprs(params: Mapping[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        found += [
            v
            for v in (value if isinstance(value, tuple | list) else [value])
            if hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ]
    return found


def _inside(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _loop_peak(name: str, params: Mapping[str, Any], body: Any) -> int:
    """The memory that one run of the body of a loop, a branch or a shard takes besides its operands and results; a scan
    also has its slices."""
    program = _Liveness()
    outside = params["num_consts"] + params["num_carry"] if name == "scan" else len(body.invars)
    sliced = program.make(frozenset(), [_bytes(v.aval) for v in body.invars[outside:]])
    return program.peak(program.add(body, [frozenset()] * outside + sliced))


def temporaries(jaxpr: Any) -> int:
    """Bytes that a program takes besides its arguments, and besides results that take the place of arguments."""
    body = _inside(jaxpr)
    program = _Liveness()
    return program.peak(program.add(body, [frozenset()] * len(body.invars)))


def needed(jaxpr: Any, arguments: Any, parts: int) -> int:
    """Bytes that a step takes on each device.

    Args:
      jaxpr: of the step.
      arguments: its arrays, each where it lives.
      parts: among how many devices the rows of a batch are divided, and with them what is computed of them.
    """
    leaves = jax.tree.leaves(arguments)
    held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    return held + temporaries(jaxpr) // parts


def report(need: int, limit: int, config: Mapping[str, Any]) -> str:
    """A line on what a step needs, and where that is more than there is, what to change."""
    what = f"a step takes about {_size(need)} of memory"
    if not limit:
        return what
    if need <= limit:
        return f"{what}, of {_size(limit)}"
    ways = [
        f"--config.batch_size below {config['batch_size']}",
        f"--config.accumulate above {config['accumulate']} (same result, microbatches)",
    ]
    ways += [] if config["remat"] else ["--config.remat=True (slower, keeps less)"]
    return f"{what}, and there are {_size(limit)}: it will probably run out. Try {', '.join(ways)}, a smaller model or shorter inputs"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def available() -> int:
    """Bytes of memory of a device: for an accelerator as it reports; for a CPU the machine's, or the process's limit if
    lower; 0 if unknown."""
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
