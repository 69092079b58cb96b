"""Every op on eight devices that share its sequences, rows or heads, against one device. Kernels are those of TPUs,
interpreted.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import pallas_kernels
from pallas_kernels import documents
from pallas_kernels.dispatch import interpreting, recording, use
from primitives.sequence import ROW_AXES

LENGTH = 32
RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def attention(
    heads: int = 8, kv_heads: int = 4, more: dict[str, tuple[int, ...]] | None = None, **options: Any
) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    arrays = {
        "q": normal(2, LENGTH, heads, 8),
        "k": normal(2, LENGTH, kv_heads, 8),
        "v": normal(2, LENGTH, kv_heads, 8),
    }
    arrays |= {name: normal(*shape) for name, shape in (more or {}).items()}
    return lambda **arrays: pallas_kernels.attention(**arrays, return_lse=True, **options), arrays


def linear(
    decay: tuple[int, ...] | None, initial: bool = False, of_values: bool = False, **options: Any
) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    arrays = {"q": normal(2, LENGTH, 2, 4), "k": normal(2, LENGTH, 2, 4), "v": normal(2, LENGTH, 4, 6)}
    if decay is not None:
        arrays["value_decay" if of_values else "decay"] = -jnp.abs(normal(*decay))
    if initial:
        arrays["initial_state"] = normal(2, 4, 4, 6)
    return functools.partial(pallas_kernels.linear_attention, return_state=True, **options), arrays


def delta(
    decay: bool, steps: int, initial: bool, keys: bool = False
) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    arrays = {
        "q": normal(2, LENGTH, 2, 4),
        "k": unit(normal(2, LENGTH * steps, 2, 4)),
        "v": normal(2, LENGTH * steps, 4, 6),
    }
    arrays["beta"] = 2 * jax.nn.sigmoid(normal(2, LENGTH * steps, 4))
    if decay:
        arrays["decay"] = -jnp.abs(normal(2, LENGTH, 4, *((4,) if keys else ())))
    if keys:
        arrays["read_key"] = 0.6 * arrays["k"]
    if initial:
        arrays["initial_state"] = normal(2, 4, 4, 6)
    return functools.partial(pallas_kernels.delta_rule, return_state=True), arrays


def scan(
    full: bool, groups: tuple[int, ...] = (), implicit: bool = False
) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    arrays = {"x": normal(2, LENGTH, 6), "delta": normal(2, LENGTH, 6), "A": -jnp.abs(normal(6, 3))}
    if implicit:
        del arrays["A"]
    arrays |= {name: normal(2, LENGTH, *groups, 3) for name in ("B", "C")}
    if full:
        arrays |= {
            "D": normal(6),
            "gate": normal(2, LENGTH, 6),
            "delta_bias": normal(6),
            "initial_state": normal(2, 6, 3),
        }
    form: dict[str, Any] = {"A": None, "transition": "implicit"} if implicit else {"delta_softplus": True}
    return functools.partial(pallas_kernels.selective_scan, return_state=True, **form), arrays


def elementwise(decay: bool, **options: Any) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    arrays = {"x": normal(2, LENGTH, 6), "initial_state": normal(2, 6)}
    if decay:
        arrays["decay"] = -jnp.abs(normal(2, LENGTH, 6))
    return functools.partial(pallas_kernels.linear_scan, return_state=True, **options), arrays


# Documents that begin on a border between devices, cross one or two, and have one token.
STARTS = documents.at(LENGTH, (0, 5, 8, 9), (13, 31))


def convolution(causal: bool) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    arrays = {"x": normal(2, LENGTH, 6), "kernel": normal(5, 1, 6)}
    if causal:
        arrays["state"] = normal(2, 4, 6)
        return functools.partial(pallas_kernels.short_convolution, return_state=True), arrays
    return lambda **arrays: (pallas_kernels.short_convolution(**arrays, causal=False),), arrays


def packed(case: tuple[Callable[..., Any], dict[str, jax.Array]]) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    call, arrays = case
    return functools.partial(call, starts=STARTS), arrays


PADDED = (jnp.arange(LENGTH)[None] < jnp.asarray([[LENGTH], [LENGTH - 11]]))[:, None, None]
PLACES = jnp.asarray([[*range(LENGTH)], [*range(3, LENGTH), -1, -1, -1]], jnp.int32)
IDS = jnp.asarray(np.repeat([[0, 1, 2], [5, 7, 6]], (9, 12, 11), axis=1), jnp.int32)
SEGMENTS = {"query_segments": IDS, "key_segments": IDS}
PASSED = ("state_passing", "xla")
SEQUENCE = {"data": 2, "sequence": 4}
ROWS = {"data": 2, "fsdp": 1, "tensor": 2}
ALL = {"fsdp": 2, "tensor": 2, "sequence": 2}
# The mesh, what is chosen from the outermost in, and the call. Of a recurrence each form is here once, packed or not.
CASES: dict[str, tuple[dict[str, int], tuple[str, ...], tuple[Callable[..., Any], dict[str, jax.Array]]]] = {
    "heads traded, causal, padded, window": (
        SEQUENCE,
        ("all_to_all", "xla"),
        attention(causal=True, mask=PADDED, window=(9, 0)),
    ),
    "heads traded, one mask for all keys, segments": (
        SEQUENCE,
        ("all_to_all", "xla"),
        attention(mask=PADDED[..., :1], **SEGMENTS),
    ),
    "ring, causal, padded, segments": (
        SEQUENCE,
        ("ring", "xla"),
        attention(6, 3, causal=True, mask=PADDED, **SEGMENTS),
    ),
    "ring, segments": (SEQUENCE, ("ring", "xla"), attention(3, 1, **SEGMENTS)),
    "no decay": (SEQUENCE, PASSED, linear(None, True)),
    "decay of a value, the state before": (SEQUENCE, PASSED, linear((2, LENGTH, 4, 6), True, True, exclusive=True)),
    "gated delta, two steps": (SEQUENCE, PASSED, delta(True, 2, False)),
    "elementwise sum": (SEQUENCE, PASSED, elementwise(False)),
    "packed elementwise": (SEQUENCE, PASSED, packed(elementwise(True))),
    "packed, constant decay": (SEQUENCE, PASSED, packed(linear((4,)))),
    "packed, decay of a key": (SEQUENCE, PASSED, packed(linear((2, LENGTH, 4, 4), True))),
    "packed delta, decays and readings of its own for each key": (
        SEQUENCE,
        PASSED,
        packed(delta(True, 2, True, keys=True)),
    ),
    "packed scan with everything": (SEQUENCE, PASSED, packed(scan(True))),
    "packed implicit scan": (SEQUENCE, PASSED, packed(scan(True, implicit=True))),
    "packed convolution": (SEQUENCE, ("neighbors", "xla"), packed(convolution(True))),
    "packed centered convolution": (SEQUENCE, ("neighbors", "xla"), packed(convolution(False))),
    "kernel: heads that share keys, bias, sinks": (
        ROWS,
        ("mosaic_tpu",),
        attention(4, 2, {"bias": (1, 4, LENGTH, LENGTH), "sinks": (4,)}, mask=PADDED),
    ),
    "kernel: heads that can't be shared, positions, segments": (
        ROWS,
        ("mosaic_tpu",),
        attention(3, 3, causal=True, query_positions=PLACES, key_positions=PLACES, **SEGMENTS),
    ),
    "kernel: constant decay": (ROWS, ("mosaic_tpu",), linear((4,), True)),
    "kernel: heads traded, causal, padded": (
        ALL,
        ("all_to_all", "mosaic_tpu"),
        attention(4, 4, causal=True, mask=PADDED),
    ),
    "kernel: ring, padded": (ALL, ("ring", "mosaic_tpu"), attention(2, 1, mask=PADDED)),
    "kernel: decay of a token, split": (ALL, ("state_passing", "mosaic_tpu"), linear((2, LENGTH, 4), True)),
    "kernel: gated delta, split": (ALL, ("state_passing", "mosaic_tpu"), delta(True, 1, True)),
    "kernel: scan with everything, split": (ALL, ("state_passing", "mosaic_tpu"), scan(True, (2,))),
}


def both(call: Callable[..., Any]) -> Callable[..., Any]:
    """Outputs, and the gradients of a sum of their squares."""

    def run(arrays: dict[str, jax.Array]) -> Any:
        def loss(arrays: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
            outputs = call(**arrays)
            return sum(jnp.sum(jnp.where(jnp.isfinite(x), x, 0) ** 2) for x in outputs), outputs

        gradients, outputs = jax.grad(loss, has_aux=True)(arrays)
        return outputs, gradients

    return run


def difference(a: jax.Array, b: jax.Array) -> float:
    a, b = np.asarray(a), np.asarray(b)
    finite = np.isfinite(b)
    assert (np.isfinite(a) == finite).all()
    a, b = a[finite], b[finite]
    return float(np.abs(a - b).max() / np.abs(b).max())


def run(case: str) -> dict[str, Any]:
    """What was chosen, and the largest relative differences of the outputs and of all gradients."""
    sizes, expected, (call, arrays) = CASES[case]
    devices = np.asarray(jax.devices()[: math.prod(sizes.values())]).reshape(*sizes.values())
    mesh = Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    rows = NamedSharding(mesh, PartitionSpec(tuple(axis for axis in ROW_AXES if axis in sizes)))
    with use("reference"):
        wanted = jax.jit(both(call))(arrays)
    kernels = interpreting() if "mosaic_tpu" in expected else contextlib.nullcontext()
    with kernels, jax.set_mesh(mesh), recording() as choices:
        placed = {
            n: jax.device_put(x, rows if x.shape[0] == 2 else NamedSharding(mesh, PartitionSpec()))
            for n, x in arrays.items()
        }
        found = jax.jit(both(call))(placed)
    return {
        "chosen": list(dict.fromkeys(choice.implementation for choice in choices)),
        "outputs": max(map(difference, jax.tree.leaves(found[0]), jax.tree.leaves(wanted[0]))),
        "gradients": {n: difference(found[1][n], wanted[1][n]) for n in arrays},
    }
