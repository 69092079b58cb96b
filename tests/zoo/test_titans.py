"""Titans and Miras as language models: sizes, states of constant size, and a memory that a user composes."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import Memory
from layers.memory.choices import Elastic, GradientDescent, MLPMemory, Retention
from tests.layers.mixer_cases import relative
from tests.tiers import tiered
from tests.zoo.families import counted_from_two
from zoo.registry import variant

NAMES = [name for family in ("titans", "moneta", "yaad", "memora") for name in zoo.list_models(f"{family}_*")]
SMALL: dict[str, Any] = {"vocab_size": 13, "features": 16, "num_heads": 2, "depth": 2}


@pytest.mark.parametrize(
    "name", tiered([name for name in NAMES if not name.endswith("nano")], lambda name: name.endswith("_170m"))
)
def test_sizes_are_those_of_the_names(name: str) -> None:
    size = name.rpartition("_")[2]
    named = float(size[:-1]) * {"m": 1e6, "b": 1e9}[size[-1]]
    assert abs(counted_from_two(variant(name)) / named - 1) < 0.03


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("nano")])
def test_the_state_does_not_grow(name: str) -> None:
    model = zoo.create(name, **SMALL)
    few, many = (jax.eval_shape(lambda n=n: model.init_state(1, n)) for n in (8, 1_000_000))
    assert few == many


@pytest.mark.full
def test_the_memory_reaches_beyond_window_and_segment() -> None:
    """A change of the first token shows in the last one's logits, hundreds of tokens on; attention alone sees 8."""
    tokens = np.random.default_rng(0).integers(0, 13, (1, 300)).astype(np.int32)
    changed = np.where(np.arange(300) < 1, (tokens + 1) % 13, tokens).astype(np.int32)
    run = nnx.jit(lambda model, tokens: model(tokens)[:, -1])
    for name in ("titans_mac_nano", "titans_mag_nano", "titans_mal_nano"):
        model = zoo.create(name, **SMALL, segment=8, window=8, persistent=2, embedding_std=1.0)
        assert np.abs(np.asarray(run(model, changed) - run(model, tokens))).max() > 1e-6, name
    attention = zoo.create("transformer_nano", **SMALL, window=8, embedding_std=1.0)
    np.testing.assert_array_equal(run(attention, changed), run(attention, tokens))


@dataclasses.dataclass(frozen=True)
class SquaredHinge:
    """1/2 max(|e| - margin, 0)^2: errors below the margin teach nothing."""

    margin: float = 0.1
    thresholded: ClassVar[bool] = False

    def __call__(self, output: jax.Array, value: jax.Array, threshold: jax.Array | None) -> jax.Array:
        e = output - value
        return jnp.sign(e) * jnp.maximum(jnp.abs(e) - self.margin, 0)


@pytest.mark.parametrize(
    "memory",
    [
        Memory(MLPMemory(1), SquaredHinge(), Elastic(0.01), GradientDescent()),
        Memory(bias=SquaredHinge(), retention=Retention(forget=False)),
    ],
    ids=["linear", "deep"],
)
def test_a_memory_of_ones_own(memory: Memory) -> None:
    """Its own bias among the given choices: it reads whole and token by token alike, and learns."""
    options = {**SMALL, "depth": 1, "chunk": 4, "embedding_std": 1.0}
    model = zoo.create("yaad_nano", **options, memory=memory)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 13, (1, 11)), jnp.int32)
    whole = nnx.jit(lambda model, tokens: model(tokens))(model, tokens)
    extend = nnx.jit(lambda model, token, state: model.extend(token, state))
    state, stepwise = model.init_state(1), []
    for i in range(11):
        logits, state = extend(model, tokens[:, i : i + 1], state)
        stepwise.append(logits)
    assert relative(jnp.concatenate(stepwise, axis=1), whole) < 1e-4
    plain = zoo.create("yaad_nano", **options, memory=dataclasses.replace(memory, bias=SquaredHinge(1e9)))
    assert relative(nnx.jit(lambda model, tokens: model(tokens))(plain, tokens), whole) > 1e-3, (
        "a margin that nothing exceeds must change what is read"
    )


def test_parts_of_the_memory_by_name() -> None:
    memory = zoo.create("titans_mag_nano", **SMALL, memory_depth=3, momentum=False, forget=False).blocks[0].mixer.memory
    assert memory.memory == Memory(
        MLPMemory(3), retention=Retention(forget=False), algorithm=GradientDescent(momentum=False)
    )
    assert len(memory.initial) == 3
    assert memory.momentum is None
    assert memory.keep is None


def test_refusals() -> None:
    with pytest.raises(ValueError, match='joined is "mac", "mag", "mal" or "lmm", got \'map\''):
        zoo.create("titans_mac_nano", joined="map")
    with pytest.raises(ValueError, match="unknown memory 'yad': did you mean 'yaad'"):
        zoo.create("yaad_nano", memory="yad")
