"""The whole training step of each family of architectures, lowered for a GPU and a TPU that need not be here, through
its kernels.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from layers.state import flatten
from pallas_kernels import compilers, dispatch
from tests.zoo.families import inputs, make
from training import optimizer as optimizers
from training import sharding
from training.step import Skeleton, initial_state, make_step

pytestmark = pytest.mark.full

# One family for each way in which a mixer calls an op, as shallow as it comes, with queries enough for a tile.
FAMILIES: dict[str, dict[str, Any]] = {
    "biformer": {"features": (8,), "depths": (1,), "num_heads": (2,), "topk": (2,)},
    "maxvit": {"features": (16,), "depths": (1,), "num_heads": (2,), "window": 4},
    "gemma": {"depth": 1},
    "longnet": {"depth": 1, "segments": (16, 32), "rates": (1, 2)},
    "routing_transformer": {"depth": 1},
    "mamba": {"depth": 1},
    "mamba2": {"depth": 1},
    "delta_net": {"depth": 1},
}
# Lowered for several devices, and not for one again.
SPLIT = ("maxvit", "mamba2")
AUXILIARY = {"routing_transformer": {"commitment": 1.0}}
KERNELS = {"h100": {"mosaic_gpu"}, "v5e": {"mosaic_tpu", "splash"}}
CALLS = {"h100": "mosaic_gpu", "v5e": "tpu_custom_call"}


def implementations(choices: list[dispatch.Choice]) -> set[str]:
    """What was picked for the ops that have kernels at all."""
    return {c.implementation for c in choices if any(i.platforms for i in dispatch.OPS[c.op].implementations)}


class Mean:
    """A task as small as a task can be."""

    def loss(self, model: nnx.Module, batch: dict[str, jax.Array], rngs: jax.Array) -> Any:
        loss = model(batch["input"]).astype(jnp.float32).mean()
        return loss, {"loss": (loss, jnp.float32(1))}


@functools.cache
def step_of(family: str) -> tuple[nnx.Module, Any, Any]:
    """A model, its training step, and the state before it."""
    model = make(family, **FAMILIES[family], dtype=jnp.bfloat16)
    chosen = optimizers.create(model, flatten(model, nnx.Param), {"name": "sgd", "learning_rate": 0.1})
    step = make_step(
        Skeleton(model), Mean(), chosen, lambda step: jnp.float32(0.1), seed=0, accumulate=1, ema=0.0,
        aux_losses=AUXILIARY.get(family, {}), sticky=False
    )  # fmt: skip
    return model, step, initial_state(model, chosen, 0.0)


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in SPLIT])
def test_lowers_with_its_kernels(family: str, device: str) -> None:
    if (reason := compilers.missing(device)) is not None:
        pytest.skip(reason)
    _, step, state = step_of(family)
    with dispatch.recording() as choices:
        lowered = compilers.lower_for(device, step, state, {"input": inputs(family)[None]})
    assert implementations(choices)
    assert implementations(choices) <= KERNELS[device], list(map(str, choices))
    assert CALLS[device] in lowered.as_text()


@pytest.mark.parametrize(
    ("family", "device", "sizes"),
    [
        ("maxvit", "v5e", {"data": 2, "fsdp": 1, "tensor": 2, "sequence": 1}),
        ("maxvit", "h100", {"data": 4, "fsdp": 2, "tensor": 1, "sequence": 1}),
        ("mamba2", "v5e", {"data": 1, "fsdp": 2, "tensor": 1, "sequence": 2}),
        ("mamba2", "h100", {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}),
    ],
)
def test_several_devices_run_them_too(family: str, device: str, sizes: dict[str, int]) -> None:
    if (reason := compilers.missing(device)) is not None:
        pytest.skip(reason)
    mesh = compilers.mesh_of(device, sizes)
    model, step, state = step_of(family)
    batch = {"input": inputs(family, batch=8)[None]}

    def on(tree: Any, places: Any) -> Any:
        return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)

    state = on(state, sharding.of_tree(mesh, state, sharding.rules_of(model)))
    batch = on(batch, {"input": sharding.of_batch(mesh, batch["input"].shape, 1)})
    with dispatch.recording() as choices:
        lowered = compilers.lower_for(device, step, state, batch, mesh=mesh)
    assert implementations(choices)
    ways = {"state_passing"} if sizes["sequence"] > 1 else set()
    assert implementations(choices) <= KERNELS[device] | ways, list(map(str, choices))
    program = lowered.compile().as_text() if (family, device) == ("mamba2", "v5e") else lowered.as_text()
    assert CALLS[device] in program
