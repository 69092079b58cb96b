"""A model gives the same output whichever implementation serves its ops: XLA's form against the TPU kernels,
interpreted.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels.dispatch import OPS, Choice, interpreting, platform, recording, use
from tests.layers.mixer_cases import relative
from tests.tiers import tiered
from tests.zoo.families import inputs, make, one_stage

# Sums in another order, through blocks that end in norms.
TOLERANCE = 1e-4
# One model for each way in which a mixer calls an op, as shallow as it comes.
MODELS: dict[str, dict[str, Any]] = {
    "biformer": {"depths": (1, 1)},
    "maxvit": one_stage("maxvit"),
    "longnet": {"depth": 1},
    "routing_transformer": {"depth": 1},
    "mamba": {"depth": 1},
    "mamba2": {"depth": 1},
    "delta_net": {"depth": 1},
}
KERNELS = {
    implementation.name
    for op in OPS.values()
    for implementation in op.implementations
    if implementation.platforms == ("tpu",)
}


def outputs(
    model: nnx.Module, x: np.ndarray, where: contextlib.AbstractContextManager[Any]
) -> tuple[np.ndarray, list[Choice]]:
    graph, state = nnx.split(model)
    with where, recording() as record:
        return np.asarray(jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x)), record


WITHOUT_KERNELS = {op.name for op in OPS.values() if not any(i.platforms for i in op.implementations)}


@pytest.mark.parametrize("family", tiered(MODELS, lambda family: family in ("biformer", "mamba2")))
def test_output_does_not_depend_on_the_implementation(family: str) -> None:
    model, x = make(family, **MODELS[family]), inputs(family)
    model.eval()
    want, choices = outputs(model, x, use("xla"))
    assert choices
    got, chosen = outputs(model, x, interpreting())
    assert {choice.op for choice in chosen if choice.implementation in KERNELS} == {
        choice.op for choice in choices
    } - WITHOUT_KERNELS, list(map(str, chosen))
    assert relative(got, want) < TOLERANCE


@pytest.mark.parametrize("family", tiered(MODELS, lambda family: family == "mamba2"))
def test_gradient_lowers_for_tpu(family: str) -> None:
    """Mosaic takes the kernels of every model's own shapes, however odd."""
    graph, state = nnx.split(make(family, **MODELS[family]))

    def gradient(state: nnx.State, x: jax.Array) -> nnx.State:
        return jax.grad(lambda state: jnp.sum(jnp.square(nnx.merge(graph, state)(x))), allow_int=True)(state)

    with platform("tpu"):
        program = jax.jit(gradient).trace(state, inputs(family)).lower(lowering_platforms=("tpu",)).as_text()
    assert program.count("tpu_custom_call") >= 2, "one forward, one backward"
