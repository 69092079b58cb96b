"""RWKV-7's mixer in blocks that hand on the first one's values, against recorded outputs, and read piece by piece."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from layers import RWKV7, Block, Branch, Stack, assign
from tests.layers.mixer_cases import relative
from tests.references import rwkv7 as recorded


def layer(index: int) -> RWKV7:
    options = {f"{name}_rank": rank for name, rank in recorded.RANKS.items()}
    return RWKV7(
        recorded.FEATURES,
        num_heads=recorded.HEADS,
        index=index,
        depth=2,
        value_residual=True,
        rngs=nnx.Rngs(0),
        **options,
    )


def test_recorded_layers(record_property: Any) -> None:
    difference, mapped = 0.0, 0
    for x, outputs in recorded.load():
        values = jnp.zeros_like(x)
        for index, want in enumerate(outputs):
            mixer, weights = layer(index), recorded.ours(index)
            assign(mixer, {name: jnp.asarray(value) for name, value in weights.items()})
            got, values = jax.jit(lambda x, values, mixer=mixer: mixer(x, None, values, None))(x, values)
            difference = max(difference, relative(got, want))
            mapped += len(weights)
    about = {"architecture": "rwkv7 (layer)", "reference": "flash-linear-attention, rwkv7", "kind": "recorded"}
    record_property("parity", {**about, "mapped": mapped // len(recorded.LENGTHS), "difference": difference})
    assert difference < 2e-5


def test_blocks_hand_on_the_first_ones_values() -> None:
    blocks = []
    for index in range(2):
        mixer = layer(index)
        assign(mixer, {name: jnp.asarray(value) for name, value in recorded.ours(index).items()})
        blocks.append(Block({"mixer": Branch(mixer, norm=None)}, features=recorded.FEATURES, rngs=nnx.Rngs(0)))
    stack, x = Stack(blocks), jnp.asarray(recorded.inputs(8))
    y, _, values = jax.jit(lambda x: stack(x, shared=jnp.zeros_like(x)))(x)
    extend = jax.jit(lambda x, state: stack.extend(x, state, shared=jnp.zeros_like(x)))
    first, state, _ = extend(x[:, :4], stack.init_state(len(x)))
    second, _, last = extend(x[:, 4:], state)
    assert relative(jnp.concatenate([first, second], axis=1), y) < 2e-5
    assert relative(last, values[:, 4:]) < 2e-5


def test_refusals() -> None:
    with pytest.raises(ValueError, match="4 heads leave one feature each: a head needs at least 2"):
        RWKV7(4, num_heads=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="needs the values that blocks pass on"):
        layer(1)(jnp.zeros((1, 2, recorded.FEATURES)))
