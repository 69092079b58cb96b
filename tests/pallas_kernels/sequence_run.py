"""Every op on a sequence split over eight devices, against one device, in a process of its own: prints JSON.

``python -m tests.pallas_kernels.sequence_run``: a line for each op, way and case, with the largest relative differences of the outputs
and of all gradients.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import pallas_kernels
from pallas_kernels.dispatch import recording, use

LENGTH = 32
RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def attention(heads: int = 8, kv_heads: int = 4, **options: Any) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    arrays = {"q": normal(2, LENGTH, heads, 8), "k": normal(2, LENGTH, kv_heads, 8), "v": normal(2, LENGTH, kv_heads, 8)}
    return lambda **arrays: pallas_kernels.attention(**arrays, return_lse=True, **options), arrays


def linear(decay: tuple[int, ...] | None, initial: bool = False) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    arrays = {"q": normal(2, LENGTH, 2, 4), "k": normal(2, LENGTH, 2, 4), "v": normal(2, LENGTH, 4, 6)}
    if decay is not None:
        arrays["decay"] = -jnp.abs(normal(*decay))
    if initial:
        arrays["initial_state"] = normal(2, 4, 4, 6)
    return lambda **arrays: pallas_kernels.linear_attention(**arrays, return_state=True), arrays


def delta(decay: bool, steps: int, initial: bool) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    arrays = {"q": normal(2, LENGTH, 2, 4), "k": unit(normal(2, LENGTH * steps, 2, 4)), "v": normal(2, LENGTH * steps, 4, 6)}
    arrays["beta"] = 2 * jax.nn.sigmoid(normal(2, LENGTH * steps, 4))
    if decay:
        arrays["decay"] = -jnp.abs(normal(2, LENGTH, 4))
    if initial:
        arrays["initial_state"] = normal(2, 4, 4, 6)
    return lambda **arrays: pallas_kernels.delta_rule(**arrays, return_state=True), arrays


def scan(full: bool) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    arrays = {"x": normal(2, LENGTH, 6), "delta": normal(2, LENGTH, 6), "A": -jnp.abs(normal(6, 3)), "B": normal(2, LENGTH, 3), "C": normal(2, LENGTH, 3)}
    if full:
        arrays |= {"D": normal(6), "gate": normal(2, LENGTH, 6), "delta_bias": normal(6), "initial_state": normal(2, 6, 3)}
    return lambda **arrays: pallas_kernels.selective_scan(**arrays, delta_softplus=True, return_state=True), arrays


PADDED = (jnp.arange(LENGTH)[None] < jnp.asarray([[LENGTH], [LENGTH - 11]]))[:, None, None]
CASES: dict[str, tuple[str, str, tuple[Callable[..., Any], dict[str, jax.Array]]]] = {
    "heads traded": ("attention", "all_to_all", attention()),
    "heads traded, causal, padded, window": ("attention", "all_to_all", attention(causal=True, mask=PADDED, window=(9, 0))),
    "ring": ("attention", "ring", attention(3, 1)),
    "ring, padded": ("attention", "ring", attention(3, 3, mask=PADDED)),
    "ring, causal": ("attention", "ring", attention(3, 3, causal=True)),
    "ring, causal, padded": ("attention", "ring", attention(6, 3, causal=True, mask=PADDED)),
    "no decay": ("linear_attention", "state_passing", linear(None, True)),
    "constant decay": ("linear_attention", "state_passing", linear((4,))),
    "decay of a token": ("linear_attention", "state_passing", linear((2, LENGTH, 4), True)),
    "decay of a key": ("linear_attention", "state_passing", linear((2, LENGTH, 4, 4))),
    "delta": ("delta_rule", "state_passing", delta(False, 1, True)),
    "gated delta, two steps": ("delta_rule", "state_passing", delta(True, 2, False)),
    "scan": ("selective_scan", "state_passing", scan(False)),
    "scan with everything": ("selective_scan", "state_passing", scan(True)),
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


def main() -> None:
    jax.config.update("jax_disable_most_optimizations", True)  # the same function, sooner compiled
    mesh = jax.make_mesh((2, 4), ("data", "sequence"), axis_types=(AxisType.Auto,) * 2)
    for name, (op, way, (call, arrays)) in CASES.items():
        with use("xla"):
            expected = jax.jit(both(call))(arrays)
        with jax.set_mesh(mesh), recording() as choices:
            placed = {n: jax.device_put(x, NamedSharding(mesh, PartitionSpec("data") if x.shape[0] == 2 else PartitionSpec())) for n, x in arrays.items()}
            found = jax.jit(both(call))(placed)
        chosen = sorted({choice.implementation for choice in choices})
        line = {"case": name, "op": op, "expected": way, "chosen": chosen}
        line["outputs"] = max(map(difference, jax.tree.leaves(found[0]), jax.tree.leaves(expected[0])))
        line["gradients"] = {n: difference(found[1][n], expected[1][n]) for n in arrays}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
