"""Attention cores against recorded outputs of their authors' code, and what feature maps and low-rank projections
promise.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import LowRank, Tokens, assign, flatten
from layers.attention.linear import normalized_linear_attention
from layers.feature_maps import FEATURE_MAPS, create_feature_map, elu_plus_one, positive_random_features
from tests.layers.mixer_cases import relative
from tests.references import cores as recorded
from tests.references import seeded

ARRAYS = dict(np.load(recorded.PATH))
ABOUT = json.loads(str(ARRAYS.pop("about")))
TOLERANCE = 1e-5
HEADS, SIDE = recorded.HEADS, recorded.SIDE


@pytest.mark.reference
def test_inline_attention_with_a_feature_map(record_property: Any) -> None:
    """The layer, whose queries, keys and values are one product of the authors'; their models have no feature map."""
    name = "inline/relu"
    state = seeded.weights({n: tuple(shape) for n, shape in ABOUT["shapes"][name].items()}, recorded.SEED)
    mixer = layers.InLineAttention(recorded.FEATURES, num_heads=HEADS, feature_map="relu", rngs=nnx.Rngs(0))
    weights = {"out.kernel": state["proj.weight"].T, "out.bias": state["proj.bias"]}
    for i, part in enumerate(("query", "key", "value")):
        weights[f"{part}.kernel"] = np.split(state["qkv.weight"], 3)[i].T
        weights[f"{part}.bias"] = np.split(state["qkv.bias"], 3)[i]
    for theirs, part in (("residual.0", "kernel_hidden"), ("residual.2", "kernel_out")):
        weights[f"{part}.kernel"] = state[f"{theirs}.weight"].transpose(2, 1, 0)
        weights[f"{part}.bias"] = state[f"{theirs}.bias"]
    assert weights.keys() == layers.flatten(mixer).keys()
    assign(mixer, {n: jnp.asarray(w) for n, w in weights.items()})
    graphdef, params = nnx.split(mixer)
    tokens = Tokens(grid=(SIDE, SIDE))
    got, pull = jax.vjp(jax.jit(lambda x: nnx.merge(graphdef, params)(x, tokens)), jnp.asarray(recorded.tokens()))
    difference = max(relative(got, ARRAYS[f"{name}/out"]), relative(pull(jnp.cos(got))[0], ARRAYS[f"{name}/gradient"]))
    about = {"reference": ABOUT["InLine"], "kind": "recorded", "mapped": len(state)}
    record_property("parity", {**about, "architecture": "inline (layer, relu)", "difference": difference})
    assert difference < TOLERANCE


@pytest.mark.reference
def test_linear_attention() -> None:
    """Both ways, the causal one whole as the authors' has it step by step, and with their random features."""
    given = recorded.heads()
    q, k, v = (jnp.asarray(given[name]) for name in "qkv")
    mask = np.arange(max(recorded.ROWS)) < np.array(recorded.ROWS)[:, None]
    x = jnp.zeros((*mask.shape, 1))
    elu, causal = (
        layers.LinearAttention(HEADS * recorded.HEAD_DIM, num_heads=HEADS, causal=causal, rngs=nnx.Rngs(0))
        for causal in (False, True)
    )
    assert relative(elu.core(q, k, v, x, Tokens(mask)), ARRAYS["linear/bidirectional"]) < TOLERANCE
    assert relative(causal.core(q, k, v, x, Tokens()), ARRAYS["linear/causal"]) < TOLERANCE
    features = 2 * recorded.RANDOM
    options = {"feature_map": {"name": "positive_random", "features": features}}
    random = layers.LinearAttention(HEADS * recorded.HEAD_DIM, num_heads=HEADS, rngs=nnx.Rngs(0), **options)
    # The authors' features are those of a projection and of its negative.
    assign(random, {"feature_map.projection": jnp.asarray(np.concatenate([given["omega"].T, -given["omega"].T]))})
    assert relative(random.core(q, k, v, x, Tokens(mask)), ARRAYS["linear/random"]) < TOLERANCE


def test_random_features_estimate_the_softmax() -> None:
    """With many features, of normal projections, attention by them approaches softmax attention."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(0.5 * rng.standard_normal((1, 9, 1, 4)), jnp.float32) for _ in range(3))
    scores = np.exp(np.asarray(q[0, :, 0] @ k[0, :, 0].T) / 2)
    expected = (scores / scores.sum(-1, keepdims=True)) @ np.asarray(v[0, :, 0])

    def error(count: int) -> float:
        phi = create_feature_map({"name": "positive_random", "features": count}, 4, rngs=nnx.Rngs(0))
        return relative(normalized_linear_attention(phi(q), phi(k), v, causal=False)[0, :, 0], expected)

    assert error(80_000) < 0.02
    assert error(4) > 0.02


def random_feature_attention(x: np.ndarray, w: dict[str, np.ndarray], causal: bool, ids: np.ndarray) -> np.ndarray:
    """Performer with two heads, on one row (length, features), from the logarithms of its weights."""
    q, k, v = (np.split(x @ w[f"{name}.kernel"], 2, axis=-1) for name in ("query", "key", "value"))
    projection, index, found = w["feature_map.projection"], np.arange(len(x)), []
    for head in range(2):
        asks, gives = (a[head] / a[head].shape[1] ** 0.25 for a in (q, k))
        asks, gives = (a @ projection.T - (a**2).sum(-1, keepdims=True) / 2 for a in (asks, gives))
        logs = asks[:, None] + gives  # of each query, key and feature
        seen = (ids[:, None] == ids) & ((index[:, None] >= index) | (not causal))
        logs = np.where(seen[..., None], logs, -np.inf)
        weights = np.exp(logs - logs.max((1, 2), keepdims=True)).sum(-1)
        found.append(weights @ v[head] / weights.sum(-1, keepdims=True))
    return np.concatenate(found, -1) @ w["out.kernel"]


@pytest.mark.parametrize("causal", [False, True])
def test_random_features_of_long_queries_and_keys(causal: bool) -> None:
    """Their features underflow, and only their ratios count: outputs and slopes, whole and token by token."""
    rng, length, width = np.random.default_rng(0), 19, 8
    mixer = layers.PerformerAttention(2 * width, num_heads=2, causal=causal, use_bias=False, rngs=nnx.Rngs(0))
    for name, size in {"query": 3.0, "key": 3.0}.items():
        kernel = rng.standard_normal((2 * width, 2 * width)).astype(np.float32)
        assign(mixer, {f"{name}.kernel": size * jnp.asarray(kernel)})
    graphdef, state = nnx.split(mixer)
    w = {name: np.asarray(a, np.float64) for name, a in flatten(mixer).items()}
    ids = np.repeat([4, 1, 2], [8, 1, 10]).astype(np.int32)
    x = rng.standard_normal((length, 2 * width)).astype(np.float32)
    assert np.linalg.norm((x @ w["query.kernel"]).reshape(length, 2, width), axis=-1).max() > 40
    cotangent, direction = (rng.standard_normal(x.shape).astype(np.float32) for _ in range(2))

    @jax.jit
    def run(x: jax.Array) -> Any:
        def loss(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = nnx.merge(graphdef, state, copy=True)(x[None], Tokens(segment_ids=ids[None]))[0]
            return jnp.sum(y * cotangent), y

        return jax.grad(loss, has_aux=True)(x)

    @jax.jit
    def steps(x: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, state, copy=True)

        def step(carry: Any, token: Any) -> Any:
            y, carry = model.extend(token[0][None, None], carry, Tokens(segment_ids=token[1][None, None]))
            return carry, y[0, 0]

        return jax.lax.scan(step, model.init_state(1), (x, ids))[1]

    for given in (x, np.broadcast_to(x[:1], x.shape), np.where(np.arange(length)[:, None] == 3, 3 * x, x), 0 * x):
        exact = functools.partial(random_feature_attention, w=w, causal=causal, ids=ids)
        want, small = exact(given.astype(np.float64)), 1e-6 * direction.astype(np.float64)
        gradient, got = run(given)
        np.testing.assert_allclose(got, want, atol=1e-4)
        slope = ((exact(given + small) - exact(given - small)) * cotangent).sum() / 2e-6
        np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-3, atol=1e-3)
        if causal:
            np.testing.assert_allclose(steps(given), want, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_small_features_have_all_digits(dtype: Any) -> None:
    """A query whose features are all small has the same digits as any other: only their ratios count."""
    x = jnp.linspace(-20, 4, 97, dtype=dtype)
    given = np.asarray(x, np.float64)
    found = np.asarray(create_feature_map("elu+1", 97, rngs=nnx.Rngs(0))(x), np.float64)
    expected = np.where(given > 0, given + 1, np.exp(given))
    np.testing.assert_allclose(found, expected, rtol=2 * float(jnp.finfo(dtype).eps) + 1e-6)
    np.testing.assert_array_equal(jax.grad(elu_plus_one)(0.0), 1)


def test_feature_maps_have_the_promised_values() -> None:
    x = jnp.asarray([[-2.0, 0.0, 1.0]])
    rows = {"elu+1": [np.exp(-2), 1, 2], "relu": [0, 0, 1], "exp": np.exp([-2, 0, 1]), "identity": [-2, 0, 1]}
    shifted = np.array([-2, 0, 1]) / (1 + np.exp([2, 0, -1]))
    rows |= {
        "silu": shifted,
        "silu+0.5": (shifted + 0.5) / np.linalg.norm(shifted + 0.5),
        "sigmoid": 1 / (1 + np.exp([2, 0, -1])),
    }
    for name, row in rows.items():
        assert relative(create_feature_map(name, 3, rngs=nnx.Rngs(0))(x)[0], row) < 1e-6, name
    projection = create_feature_map("positive_random", 3, rngs=nnx.Rngs(0)).projection[...]  # type: ignore[union-attr]
    assert relative(projection @ projection.T, 3 * np.eye(3)) < 1e-5
    expected = np.exp(np.asarray(projection) @ np.asarray(x[0]) - 2.5) / np.sqrt(3)
    assert relative(positive_random_features(x, projection)[0], expected) < 1e-5
    assert set(FEATURE_MAPS) == {*rows, "positive_random"}


def test_a_wrong_feature_map_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown feature map 'rely': did you mean 'relu'"):
        create_feature_map("rely", 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="the feature map 'relu' has no options, got features"):
        create_feature_map({"name": "relu", "features": 3}, 4, rngs=nnx.Rngs(0))


def test_cores_of_images_need_the_grid() -> None:
    mixer = layers.create_mixer("inline", 8, num_heads=2, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 7, 8)), jnp.float32)
    with pytest.raises(ValueError, match="the tokens' rows and columns are not known"):
        mixer(x)
    x = x[:, 1:]
    flat, map_ = jax.jit(lambda x: (mixer(x, Tokens(grid=(2, 3))), mixer(x.reshape(1, 2, 3, 8))))(x)
    assert relative(map_.reshape(flat.shape), flat) < 1e-6
    with pytest.raises(ValueError, match="12 is not a square number"):
        layers.create_mixer("agent", 8, num_heads=2, agents=12, rngs=nnx.Rngs(0))


def test_agent_tables_fit_other_maps() -> None:
    """A constant table is constant on any map; prefix tokens without scores of their own get 0."""
    mixer = layers.AgentAttention(8, num_heads=2, agents=4, grid=(3, 5), prefix=1, rngs=nnx.Rngs(0))
    bias = mixer.agent_bias
    assign(bias, {name: jnp.full(value.shape, 2.0) for name, value in layers.flatten(bias).items()})
    scores = np.asarray(bias((4, 6), 3))
    assert scores.shape == (2, 4, 3 + 24)
    assert np.array_equal(scores[0, 0, :3], [2, 0, 0])
    assert np.allclose(scores[..., 3:], 6.0)


def test_low_rank_is_two_products() -> None:
    layer = LowRank(6, 2, 5, activation=jnp.tanh, bias_init=nnx.initializers.normal(1.0), rngs=nnx.Rngs(0))
    assert {name: value.shape for name, value in layers.flatten(layer).items()} == {
        "down.kernel": (6, 2),
        "up.kernel": (2, 5),
        "up.bias": (5,),
    }
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    expected = np.tanh(x @ np.asarray(layer.down.kernel[...])) @ np.asarray(layer.up.kernel[...]) + np.asarray(
        layer.up.bias[...]
    )
    assert relative(layer(x), expected) < 1e-5
