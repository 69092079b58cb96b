"""The super-network of ViT-ResNAS is its sub-networks; the search finds the best of them within its limit."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import assign, flatten
from layers.drop import ChannelDrop
from layers.state import flatten_state
from tests.compilation import program
from tests.layers.mixer_cases import relative
from zoo.vision.vit_resnas_search import block_cost, evolve, masked, search, subnetwork

STAGES = (((4, 24), (2, 16)), ((3, 40),))
SIZES: dict[str, Any] = {
    "stages": STAGES, "features": 16, "widths": (24,), "head_dims": (6, 8), "stem": 8, "depth": 3, "num_heads": 4,
    "image_size": 16, "num_classes": 5,
}  # fmt: skip
CHOSEN = (((2, 12), (2, 10)), ((2, 40),))
IMAGES = np.random.default_rng(0).standard_normal((6, 16, 16, 3)).astype(np.float32)


def test_channels_are_kept_by_group() -> None:
    drop = ChannelDrop((2, 3, 5), 4, rngs=nnx.Rngs(0))
    graph, state = nnx.split(drop)

    @jax.jit
    def run(state: nnx.State) -> tuple[jax.Array, jax.Array]:
        drop = nnx.merge(graph, state)
        return drop(jnp.ones((8, 3, 5))), drop(jnp.ones((8, 3, 5)))

    first, second = map(np.asarray, run(state))
    counts = first.sum(-1)[:, 0].astype(int)
    np.testing.assert_array_equal(first, np.broadcast_to(np.arange(5) < counts[:, None, None], first.shape))
    np.testing.assert_array_equal(counts[:4], counts[4:])
    assert set(counts) <= {2, 3, 5}
    assert max(np.bincount(counts[:4])) <= 2
    assert not np.array_equal(first, second)
    drop.eval()
    assert drop(jnp.ones((2, 5))).sum() == 10
    with pytest.raises(ValueError, match="at least 1 channel and 1 group"):
        ChannelDrop((), 4, rngs=nnx.Rngs(0))


@pytest.mark.full
def test_masked_weights_are_the_smaller_model() -> None:
    model: Any = zoo.create("vit_resnas_nano", sampled=3, **SIZES)
    assert flatten(model).keys() == flatten(zoo.create("vit_resnas_nano", **SIZES)).keys()
    assign(model, {name: a + 0.1 * jnp.sin(jnp.arange(a.size).reshape(a.shape)) for name, a in flatten(model).items()})
    whole, small = program(model)(IMAGES), subnetwork(model, CHOSEN)
    assert flatten(small)["blocks.0.mixer.query.kernel"].shape == (16, 12)
    found = program(small)(IMAGES)
    assign(model, masked(flatten(model), CHOSEN, (6, 8)))
    assert relative(program(model)(IMAGES), found) < 1e-5
    assert relative(whole, found) > 1e-2


@pytest.mark.full
def test_training_goes_through_sub_networks() -> None:
    """With one share, all examples go through the same one; gradients of what it lacks are zero."""
    model: Any = zoo.create("vit_resnas_nano", sampled=2, shares=(0.5, 1.0), **SIZES)
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def run(params: nnx.State, rest: nnx.State) -> tuple[jax.Array, nnx.State]:
        def loss(params: nnx.State) -> jax.Array:
            model = nnx.merge(graph, params, rest, copy=True)
            for block in model.blocks:
                block.mixer.drop.kept = block.mixer.drop.kept[:1]
                block.channel.norm.kept = block.channel.norm.kept[:1]
            return jnp.sin(model(IMAGES)).sum()

        return jax.value_and_grad(loss)(params)

    value, gradient = run(params, rest)
    halves = (((2, 12), (1, 8)), ((2, 20),))
    small = subnetwork(model, halves)
    small.train()
    np.testing.assert_allclose(value, jnp.sin(program(small)(IMAGES)).sum(), rtol=1e-4)
    rows = np.abs(np.asarray(flatten_state(gradient)["blocks.0.mixer.out.kernel"])).sum(1)
    np.testing.assert_array_equal(rows > 0, np.arange(24) < 12)
    with pytest.raises(ValueError, match="shares= are above 0 and up to 1"):
        zoo.create("vit_resnas_nano", sampled=2, shares=(0.5,), **SIZES)


def test_cost_is_the_counted_one() -> None:
    """Its difference between two sizes, against the count of the whole models."""
    model: Any = zoo.create("vit_resnas_nano", **SIZES)

    def counted(stages: Any) -> float:
        return zoo.summary("vit_resnas_nano", show=False, **{**SIZES, "stages": stages}).multiply_adds

    found = block_cost(model, STAGES) - block_cost(model, CHOSEN)
    assert found == pytest.approx(counted(STAGES) - counted(CHOSEN), rel=1e-9)


def test_evolution_finds_what_trying_all_finds() -> None:
    """Of 4^6 the best within a limit that the unlimited best exceeds, after a tenth of them."""
    options, worth = [(1, 2, 3, 4)] * 6, np.array([5, -1, 3, 2, 4, 1])

    def score(genes: Any) -> float:
        return float(worth @ genes)

    found = evolve(options, score, sum, 14, population=40, parents=10, children=15, rounds=12)
    every = [genes for genes in itertools.product(*options) if sum(genes) <= 14]
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert len(found) < len(every) / 4
    assert next(iter(found.values())) == max(map(score, every)) < max(map(score, itertools.product(*options)))
    assert max(map(sum, found)) <= 14
    few = evolve([(1, 2)] * 2, score=lambda genes: 0.0, cost=sum, limit=9, population=2, rounds=3)
    assert list(few)[::3] == [(1, 1), (2, 2)], "all four, the cheapest first"
    with pytest.raises(ValueError, match="nothing is within limit=5: the smallest costs 6"):
        evolve(options, score, sum, 5)
    with pytest.raises(ValueError, match="crossover takes two parents"):
        evolve(options, score, sum, 14, parents=1)


def test_search() -> None:
    """Here by the size of what is left."""
    model: Any = zoo.create("vit_resnas_nano", sampled=3, **SIZES)
    limit = (block_cost(model, STAGES) + block_cost(model, CHOSEN)) / 2

    def left(weights: dict[str, Any]) -> float:
        return float(sum(np.count_nonzero(weights[name]) for name in weights if name.endswith("mixer.out.kernel")))

    found = search(model, left, limit, population=20, parents=5, children=5, rounds=4)
    assert found[0].score == max(one.score for one in found)
    assert max(one.cost for one in found) <= limit
    assert found[0].cost == block_cost(model, found[0].stages)
    assert len({one.stages for one in found}) == len(found) > 20
    with pytest.raises(ValueError, match="the model is no super-network"):
        search(zoo.create("vit_resnas_nano", **SIZES), left, limit)
