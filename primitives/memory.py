"""Memory estimate of a program from its jaxpr, before anything is compiled.

XLA is modeled by one rule: a result is an array in memory, from the operation that computes it to the last one that
needs it, except elementwise results larger than their operands (broadcasts, masks), which are fused into their
consumers. Results that alias arguments count as 0 bytes, as do arrays in host memory. The estimate is the peak of the
sum of live arrays: for training steps it is within a factor of two of the compiler's own figure on CPUs, over the
families of the zoo (tests/training/test_memory_estimate.py has the test; measured 0.6 to 1.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from primitives import operations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MATERIALIZED = _names(
    """dot_general ragged_dot conv_general_dilated argmax argmin sort top_k approx_top_k gather
    concatenate stack dynamic_update_slice pad rng_bit_generator threefry2x32 random_bits fft cholesky triangular_solve
    lu qr eigh svd scan while cond shard_map pallas_call core_map mpmd_map all_gather all_to_all ppermute psum"""
)
_MATERIALIZED_KINDS = ("reduce_", "cum", "scatter", "select_and_", "custom_call", "ffi_call")
_SAME = _names("reshape squeeze expand_dims stop_gradient sharding_constraint optimization_barrier name")
_INLINED = _names(
    "jit pjit closed_call core_call call checkpoint remat remat2 custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr "
    "run_state"
)


class _Buffer:
    """An array in memory; one of ``size`` 0 is an argument, which is always live."""

    def __init__(self, size: int) -> None:
        self.size = size


_Sources = frozenset[_Buffer]


class _Liveness:
    """The operations of a jaxpr that create arrays, in order: the buffers each reads and creates, and its temporary
    bytes.
    """

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

    def moments(self, results: Iterable[_Sources]) -> list[int]:
        """The bytes that live while each operation runs; ``results`` live to the end."""
        last = {buffer: number for number, (reads, made, _) in enumerate(self.steps) for buffer in (*reads, *made)}
        last |= {buffer: len(self.steps) for sources in results for buffer in sources}
        live, found = 0, []
        ending: dict[int, int] = {}
        for buffer, number in last.items():
            ending[number] = ending.get(number, 0) + buffer.size
        for number, (_, made, inner) in enumerate(self.steps):
            live += sum(buffer.size for buffer in made)
            found.append(live + inner)
            live -= ending.get(number, 0)
        return found


def _bytes(aval: Any) -> int:
    if "HOST" in str(getattr(aval, "memory_space", "")).upper():  # offloaded by a rematerialization policy
        return 0
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
    """Peak bytes of one run of the body of a loop, branch or shard, besides its operands and results; a scan adds its
    slices.
    """
    program = _Liveness()
    outside = sum(operations.scan_sizes(params)) if name == "scan" else len(body.invars)
    sliced = program.make(frozenset(), [_bytes(v.aval) for v in body.invars[outside:]])
    return max(program.moments(program.add(body, [frozenset()] * outside + sliced)), default=0)


def moments(jaxpr: Any) -> list[int]:
    """Bytes that a program needs besides its arguments and results that alias them, while each of its operations runs
    that makes an array; ``jaxpr`` may be closed or open. Where two programs differ in the number of rows alone, each of
    them grows linearly.
    """
    body = _inside(jaxpr)
    program = _Liveness()
    return program.moments(program.add(body, [frozenset()] * len(body.invars)))


def temporaries(jaxpr: Any) -> int:
    """Peak bytes that a program needs besides its arguments and results that alias them; ``jaxpr`` may be closed or
    open.
    """
    return max(moments(jaxpr), default=0)


def kept(program: Callable[..., Any], parameters: Any, inputs: Any) -> int:
    """Bytes of the arrays, besides parameters, that the backward pass of ``program(parameters, inputs)`` reads: stored
    results of the forward pass, and inputs that are needed again.

    Args:
      program: a function, which is traced abstractly; nothing is computed.
      parameters, inputs: trees of arrays, or of their shapes and types.
    """
    leaves, tree = jax.tree.flatten((parameters, inputs))
    moving = [number for number, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def backward(leaves: list[Any]) -> Any:
        def forward(*values: Any) -> Any:
            filled = dict(enumerate(leaves)) | dict(zip(moving, values, strict=True))
            return program(*jax.tree.unflatten(tree, [filled[number] for number in range(len(leaves))]))

        return jax.vjp(forward, *[leaves[number] for number in moving])[1]

    body = _inside(jax.make_jaxpr(backward)(leaves))
    first = len(jax.tree.leaves(parameters))
    given = [frozenset([_Buffer(_bytes(v.aval))] if n >= first else []) for n, v in enumerate(body.invars)]
    return sum(buffer.size for buffer in frozenset().union(*_Liveness().add(body, given)))


def size(count: int) -> str:
    """Formats a number of bytes in GiB or MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
