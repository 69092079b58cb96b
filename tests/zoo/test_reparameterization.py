"""Merged forms compute the same with fewer operations."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import ConvNorm
from layers.state import flatten
from tests.layers.mixer_cases import relative
from tests.zoo.families import make, one_stage, run


def trained(model: Any) -> Any:
    """The model with statistics, scales and biases of no simple value."""
    rng = np.random.default_rng(0)
    for path, variable in nnx.iter_graph(model):
        if (
            isinstance(variable, nnx.BatchStat | nnx.Param)
            and variable.ndim == 1
            and not isinstance(variable, nnx.RngState)
        ):
            variable.set_value(jax.numpy.asarray(rng.uniform(0.5, 1.5, variable.shape), variable.dtype))
        del path
    model.eval()
    return model


@pytest.mark.parametrize("family", ["biformer", "maxvit"])
def test_a_merged_model_computes_the_same(family: str) -> None:
    model = trained(make(family, **one_stage(family)))
    x = np.random.default_rng(1).standard_normal((2, 32, 32, 3)).astype(np.float32)
    before, count = run(model, x), len(flatten(model))
    assert zoo.reparameterize(model) is model
    assert relative(run(model, x), before) < 1e-5
    assert len(flatten(model)) < count
    merged = [module for _, module in nnx.iter_modules(model) if isinstance(module, ConvNorm)]
    assert merged
    assert all(module.norm is None for module in merged)


@pytest.mark.parametrize("use_bias", [False, True])
def test_a_convolution_with_its_norm(use_bias: bool) -> None:
    layer = trained(ConvNorm(3, 4, use_bias=use_bias, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(1).standard_normal((2, 5, 6, 3)).astype(np.float32)
    merged = layer.merged()
    assert relative(merged(x), layer(x)) < 1e-5
    assert layer.norm is not None
    other = ConvNorm(3, 4, norm="layer", rngs=nnx.Rngs(0))
    assert other.merged() is other
