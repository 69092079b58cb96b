"""Adapters: nothing changes at first, merged equals unmerged, and they stand wherever linear layers do."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
import zoo
from layers.lora import AdaptedLinear, adapters, kept
from layers.state import flatten, flatten_state
from tests.layers.mixer_cases import relative
from tests.tiers import tiered

X = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)


def vit(**options: Any) -> Any:
    model: Any = zoo.create("vit_nano_patch4_32", depth=2, features=16, patch_size=8, num_classes=4, **options)
    model.eval()
    return model


@functools.partial(jax.jit, static_argnums=0)
def called(graphdef: Any, state: nnx.State, x: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, state)(x)


def outputs(model: nnx.Module, x: Any = X) -> jax.Array:
    """In float64: two orders of the same arithmetic differ by less than any mistake."""
    graphdef, state = nnx.split(model)
    with jax.enable_x64(True):
        state, x = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64) if leaf.dtype == jnp.float32 else jnp.asarray(leaf), (state, x)
        )
        return called(graphdef, state, x)


def move(model: nnx.Module) -> nnx.Module:
    """Random adapters, as training would leave them."""
    rng = np.random.default_rng(1)
    layers.assign(
        model,
        {
            name: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype)
            for name, leaf in flatten(model, nnx.LoRAParam).items()
        },
    )
    return model


@pytest.mark.parametrize(
    "form",
    tiered([{}, {"scan": True}, {"scan": True, "remat": True}], lambda form: not form),
    ids=["loop", "scan", "scan+remat"],
)
def test_equation(form: dict[str, Any]) -> None:
    """Fresh adapters change no bit, trained ones add alpha / rank (x A) B, and merged is unmerged."""
    plain = vit()
    adapted = layers.add_lora(vit(**form), rank=3, alpha=6.0)
    assert relative(outputs(adapted), outputs(plain)) < 1e-6
    if not form:
        assert np.array_equal(outputs(adapted), outputs(plain))
    assert set(flatten(plain)) == set(flatten(adapted)) - set(flatten(adapted, nnx.LoRAParam))
    assert len(adapters(adapted)) == 2 * 6

    move(adapted)
    by_hand = vit()
    for name, layer in adapters(adapted).items():
        a, b = np.asarray(layer.lora_a[...], np.float64), np.asarray(layer.lora_b[...], np.float64)
        assert (a.shape[1], layer.lora_scale) == (3, 2.0)
        layers.assign(
            by_hand, {f"{name}.kernel": jnp.asarray(np.asarray(layer.kernel[...]) + 6 / 3 * a @ b, jnp.float32)}
        )
    assert relative(outputs(adapted), outputs(plain)) > 1e-2
    assert relative(outputs(adapted), outputs(by_hand)) < 1e-6

    before = outputs(adapted)
    layers.merge_lora(adapted)
    assert relative(outputs(adapted), before) < 1e-6
    assert not adapters(adapted)
    assert set(flatten(adapted)) == set(flatten(plain))
    assert nnx.graphdef(vit(**form)) == nnx.graphdef(adapted)


def test_patterns_name_layers() -> None:
    model = layers.add_lora(vit(), patterns=("*.query", "blocks.1.channel.*"))
    expected = {f"blocks.{i}.mixer.query" for i in range(2)} | {"blocks.1.channel.up", "blocks.1.channel.down"}
    assert set(adapters(model)) == expected
    assert relative(outputs(move(model)), outputs(layers.merge_lora(nnx.clone(model)))) < 1e-6


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "options", "x"),
    [
        (
            "mamba_nano",
            {"depth": 2, "features": 16, "state_dim": 4, "vocab_size": 11, "scan": True},
            np.arange(20, dtype=np.int32).reshape(2, 10) % 11,
        ),
        ("bert_tiny", {"features": 16, "vocab_size": 11}, np.arange(20, dtype=np.int32).reshape(2, 10) % 11),
        (
            "biformer_nano",
            {"features": (8, 16), "stem": (4, 8), "num_heads": (1, 2), "depths": (1, 1), "num_classes": 4},
            X,
        ),
    ],
)
def test_other_backbones(name: str, options: dict[str, Any], x: np.ndarray) -> None:
    """Every adapter is in use: its B has a gradient; and merging changes no output."""
    model = move(layers.add_lora(zoo.create(name, **options), rank=2))
    model.eval()
    graphdef, params, rest = nnx.split(model, nnx.LoRAParam, ...)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(nnx.merge(graphdef, params, rest, copy=True)(x)))))(
        params
    )
    assert all(np.abs(g).max() > 0 for g in flatten_state(gradient).values())
    before = outputs(model, x)
    assert relative(outputs(layers.merge_lora(model), x), before) < 1e-5


def test_compute_dtype_is_the_layers() -> None:
    model = layers.add_lora(vit(dtype=jnp.bfloat16))
    assert outputs(model).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in flatten(model).values()} == {jnp.dtype(jnp.float32)}


def test_only_adapters_and_the_head_are_trained() -> None:
    model = layers.add_lora(vit())
    free = set(flatten(model, nnx.Param)) - kept(model)
    assert free == set(flatten(model, nnx.LoRAParam)) | {"head.kernel", "head.bias"}
    assert kept(vit()) == set()


def test_in_a_model_of_ones_own() -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.parts = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.parts[1](jnp.tanh(self.parts[0](x)))

    model = layers.add_lora(Net(nnx.Rngs(0)), patterns=("parts.0",))
    assert isinstance(model.parts[0], AdaptedLinear)
    assert type(model.parts[1]) is nnx.Linear


def test_refusals() -> None:
    with pytest.raises(ValueError, match="rank of adapters is at least 1, got 0"):
        layers.add_lora(vit(), rank=0)
    with pytest.raises(
        ValueError, match=r"no linear layer matches 'blocks.0.mixer.qery': did you mean 'blocks.0.mixer.query'"
    ):
        layers.add_lora(vit(), patterns=("blocks.0.mixer.qery",))
    with pytest.raises(ValueError, match=r"has adapters already: merge_lora\(model\) first"):
        layers.add_lora(layers.add_lora(vit()))
