"""Mixers on eight devices that share a sequence or a batch, against one device."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import layers
from layers.memory.choices import Memory, MLPMemory
from layers.state import flatten
from pallas_kernels.dispatch import use

ROWS, LENGTH, FEATURES = 4, 64, 16
MATRIX = Memory(MLPMemory(1))  # what devices hand on is the same for deeper ones
DILATED = {"num_heads": 4, "segments": (8, 32, 64), "rates": (1, 2, 4)}
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {  # the mixer, its options, and whether the second row is padded
    "attention": ("attention", {"num_heads": 4, "num_kv_heads": 2, "causal": True, "rotary": 10_000.0}, False),
    "mamba2, padded": ("mamba2", {"state_dim": 4}, True),
    "gated delta net": ("gated_delta_net", {"num_heads": 2}, False),
    "neural memory, padded": ("neural_memory", {"num_heads": 2, "chunk": 4, "persistent": 2, "memory": MATRIX}, True),
    "titans, memory as context": (
        "titans_mac",
        {"num_heads": 2, "segment": 8, "persistent": 2, "memory": MATRIX},
        False,
    ),
    "dilated, causal": ("dilated_attention", {**DILATED, "causal": True}, False),
    "dilated, padded": ("dilated_attention", DILATED, True),
}


def run(case: str) -> dict[str, Any]:
    """The largest relative differences of output and gradients, and the largest array that devices gather."""
    mesh = jax.make_mesh((2, 4), ("data", "sequence"), axis_types=(AxisType.Auto,) * 2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, LENGTH, FEATURES)), jnp.float32)
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", "sequence")))
    mixer, options, padded = CASES[case]
    made = layers.create_mixer(mixer, features=FEATURES, rngs=nnx.Rngs(0), **options)
    graph, params = nnx.split(made)
    real = jnp.arange(LENGTH)[None] < LENGTH - 14 * padded * (jnp.arange(ROWS)[:, None] == 1)

    def loss(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = nnx.merge(graph, params)(x, real if padded else None)
        y = jnp.where(real[..., None], y, 0)
        return jnp.sum(jnp.square(y)), y

    def both(params: Any, x: jax.Array) -> Any:
        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    with use("reference"):
        (expected_params, expected_x), expected = jax.jit(both)(params, x)
    with jax.set_mesh(mesh):
        compiled = jax.jit(both).lower(params, placed).compile()
        (found_params, found_x), found = compiled(params, placed)
    pairs = {"output": (found, expected), "x": (found_x, expected_x)}
    theirs, ours = flatten_of(made, expected_params), flatten_of(made, found_params)
    pairs |= {parameter: (ours[parameter], theirs[parameter]) for parameter in ours}
    # A gradient that cancels to nothing, as that of a key's bias, is compared at the scale of the others.
    scale = max(float(jnp.abs(b).max()) for _, b in pairs.values())
    differences = {
        key: float(jnp.abs(a - b).max() / jnp.maximum(jnp.abs(b).max(), 1e-2 * scale)) for key, (a, b) in pairs.items()
    }
    gathered = [
        int(np.prod([int(n) for n in shape.split(",")]))
        for shape in re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", compiled.as_text())
    ]
    return {"differences": differences, "largest_gathered": max(gathered, default=0)}


def centroids(devices: int) -> list[Any]:
    """Those of a routing layer after a training step on a batch that so many devices share, as each device has them."""
    from tests.layers.test_routing import inputs, make

    graph, state = nnx.split(make(decay=0.5))
    mesh = Mesh(np.asarray(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))

    def step(state: nnx.State, x: jax.Array) -> jax.Array:
        layer = nnx.merge(graph, state)
        layer.train()
        layer(x)
        return layer.centroids[...]

    x = jax.device_put(np.asarray(inputs(20, batch=4)), NamedSharding(mesh, PartitionSpec("data")))
    out = jax.jit(step, out_shardings=NamedSharding(mesh, PartitionSpec()))(state, x)
    return [np.asarray(shard.data).tolist() for shard in out.addressable_shards]


def flatten_of(module: nnx.Module, state: Any) -> dict[str, jax.Array]:
    """``state`` by the names of ``module``'s parameters."""
    copy = nnx.clone(module)
    nnx.update(copy, state)
    return flatten(copy, nnx.Param)
