"""S4D's two architectures: what the registry's suites do not test."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import S4D, flatten


def test_hyper_parameters_reach_the_layers() -> None:
    model = nnx.eval_shape(
        lambda: zoo.create("s4d_nano", depth=2, state_dim=6, initialization="real", discretization="bilinear")
    )
    layers = [module for _, module in nnx.iter_modules(model) if isinstance(module, S4D)]
    assert len(layers) == 2
    assert {(layer.modes, layer.A_imag, layer.discretization, layer.causal) for layer in layers} == {
        (6, None, "bilinear", True)
    }


def test_pixels_are_read_in_both_directions_without_mlp() -> None:
    model = zoo.create("s4d_pixels_nano", image_size=4, features=8, depth=1, in_channels=1)
    assert [names for names, _ in model.blocks[0].branches] == [("mixer",)]
    assert model.blocks[0].mixer.C.shape[0] == 2
    image = np.random.default_rng(0).standard_normal((1, 4, 4, 1)).astype(np.float32)
    tokens = jax.jit(lambda image: model.features(image, [0])[0])
    for changed, seen in (((0, 0), (3, 3)), ((3, 3), (0, 0))):
        other = image.copy()
        other[0, *changed] += 1
        assert np.abs(tokens(other) - tokens(image))[0, *seen].max() > 1e-4


def test_weight_decay_spares_the_poles() -> None:
    spared = nnx.eval_shape(lambda: zoo.create("s4d_nano", depth=1)).no_decay()
    assert {f"blocks.0.mixer.{name}" for name in ("log_dt", "log_A_real", "A_imag", "D")} <= spared
    assert "blocks.0.mixer.C" not in spared


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("mamba_nano", {}),
        ("transformer_nano", {"mixer": "mamba"}),
        ("vit_nano_patch4_32", {"mixer": {"name": "bidirectional", "inner": "mamba"}}),
    ],
)
def test_weight_decay_spares_the_rates_of_decay_wherever_the_mixer_stands(model: str, options: dict[str, Any]) -> None:
    spared = nnx.eval_shape(lambda: zoo.create(model, depth=2, **options)).no_decay()
    assert sum(name.endswith(".A_log") for name in spared) == (4 if "vit" in model else 2)
    assert not any(name.endswith((".in_proj.kernel", ".x_proj.kernel")) for name in spared)


def test_residual_stream_is_float32() -> None:
    """In bfloat16 too: many small additions would be lost."""
    for name in ("s4d_nano", "mamba_nano", "mamba2_nano"):
        model = nnx.eval_shape(lambda name=name: zoo.create(name, depth=1, features=16, dtype="bfloat16"))
        graphdef, state = nnx.split(model)
        outputs = jax.eval_shape(
            lambda state, x, g=graphdef: nnx.merge(g, state).features(x, [0]), state, jnp.zeros((1, 4), jnp.int32)
        )
        assert outputs[0].dtype == jnp.float32
        assert {leaf.dtype for leaf in flatten(model).values()} == {jnp.dtype(jnp.float32)}
