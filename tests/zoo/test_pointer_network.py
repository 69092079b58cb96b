"""Pointer networks: the equation, padding, their own answers, what they refuse."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import flatten
from layers.attention.additive import AdditiveAttention
from tests.compilation import program
from tests.layers.mixer_cases import relative

SIZES = {"features": 12}


def points(batch: int = 3, count: int = 6) -> np.ndarray:
    return np.random.default_rng(1).random((batch, count, 2), np.float32)


def test_additive_scores_are_the_equation() -> None:
    """In float64, score by score, with the gradients of its products; keys that are not real may be anything."""
    rng = np.random.default_rng(0)
    module = AdditiveAttention(5, hidden=7, rngs=nnx.Rngs(0))
    queries, keys = (rng.standard_normal((2, length, 5)).astype(np.float32) for length in (3, 4))
    mask = np.arange(4) < np.asarray([[4], [2]])
    w_q, w_k, v = (np.asarray(getattr(module, name).kernel[...], np.float64) for name in ("query", "key", "score"))
    inner = (queries @ w_q)[:, :, None] + (keys @ w_k)[:, None]
    graph, params = nnx.split(module)

    def scores(params: Any, queries: Any, keys: Any) -> jax.Array:
        return nnx.merge(graph, params)(queries, jnp.where(mask[..., None], keys, jnp.nan), jnp.asarray(mask))

    def loss(*given: Any) -> tuple[jax.Array, jax.Array]:
        u = scores(*given)
        return jnp.sum(jnp.where(mask[:, None], u, 0) ** 2), u

    (of_params, of_queries, of_keys), u = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(params, queries, keys)
    want = np.where(mask[:, None], (np.tanh(inner) @ v)[..., 0], -np.inf)
    np.testing.assert_allclose(u, want, rtol=1e-5, atol=1e-6)
    slope = 2 * np.where(mask[:, None], want, 0)[..., None]
    through = slope * v[:, 0] * (1 - np.tanh(inner) ** 2)  # (batch, queries, keys, hidden)
    assert relative(of_params["score"]["kernel"][...][:, 0], (slope * np.tanh(inner)).sum((0, 1, 2))) < 1e-5
    assert relative(of_queries, through.sum(2) @ w_q.T) < 1e-5
    assert relative(of_keys, through.sum(1) @ w_k.T) < 1e-5
    assert relative(of_params["key"]["kernel"][...], np.einsum("bkf,bqkh->fh", np.nan_to_num(keys), through)) < 1e-5


def test_its_own_answer_is_the_likeliest_one_step_at_a_time() -> None:
    """Logits of its own positions are those of the same positions given; read whole, in pieces, and in a loop."""
    model, x = zoo.create("pointer_network_nano", **SIZES, rngs=nnx.Rngs(3)), points()
    own = jax.jit(lambda x: nnx.clone(model)(x, steps=9))(x)
    assert own.shape == (3, 9, 7)
    assert program(model)(x).shape == (3, 8, 7)
    read = jnp.pad(jnp.argmax(own, -1)[:, :-1], ((0, 0), (1, 0)))
    np.testing.assert_allclose(program(model)(x, read), own, atol=1e-6)
    encoded = model.encode(x)
    first, state = model.extend(read[:, :4], model.init_state(3, context=encoded))
    rest, _ = model.extend(read[:, 4:], state)
    np.testing.assert_allclose(jnp.concatenate([first, rest], 1), own, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, *(pytest.param(options, marks=pytest.mark.full) for options in ({"mixer": "mamba"}, {"outputs": 8}))],
    ids=["lstm", "mamba", "dictionary"],
)
def test_padding_changes_nothing(options: dict[str, Any]) -> None:
    """Neither logits nor gradients, whatever it holds; it is never pointed to."""
    model = zoo.create("pointer_network_nano", **SIZES, depth=2, **options)
    for part in (model.pointer.query, model.pointer.key, model.pointer.score):
        part.kernel[...] *= 10  # near 0 tanh is a line, and what a softmax makes of it depends on no query
    x, sizes = points(), np.asarray([6, 4, 5])
    mask = np.arange(6) < sizes[:, None]
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    target = np.zeros((3, 4), np.int32)
    target[:, 1:] = [[2, 6, 1], [4, 3, 1], [5, 2, 0]]

    @jax.jit
    def step(params: Any, x: jax.Array, target: jax.Array, mask: jax.Array | None) -> Any:
        def loss(params: Any) -> Any:
            logits = nnx.merge(graph, params, rest, copy=True)(x, target, mask)
            chosen = jax.nn.log_softmax(logits)[:, :, 1:4]
            return jnp.sum(chosen), logits

        return jax.grad(loss, has_aux=True)(params)

    whole, logits = step(params, np.where(mask[..., None], x, np.nan), target, mask)
    assert (np.isneginf(np.asarray(logits)[:, 0]) == ~np.pad(mask, ((0, 0), (1, 0)), constant_values=True)).all()
    total = None
    for row, size in enumerate(sizes):
        alone, want = step(params, x[row : row + 1, :size], target[row : row + 1], None)
        np.testing.assert_allclose(logits[row, :, : size + 1], want[0], atol=1e-5)
        total = alone if total is None else jax.tree.map(jnp.add, total, alone)
    got, expected = flatten_state(whole), flatten_state(total)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in got.values())
    assert all(relative(g, expected[name]) < 1e-4 for name, g in got.items())


def flatten_state(state: Any) -> dict[str, Any]:
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def test_a_fixed_dictionary_is_the_equation() -> None:
    """Attention over what the encoder made, in float64, and a linear map to positions; those without a point have no
    logit.
    """
    model, x = zoo.create("pointer_network_nano", **SIZES, outputs=9, rngs=nnx.Rngs(3)), points()
    read = np.asarray([[0, 2, 1]] * 3)
    encoded = model.encode(x)
    words = np.take_along_axis(np.asarray(encoded.words), read[..., None], 1)
    d = np.asarray(model.decoder.blocks.extend(jnp.asarray(words), encoded.states)[0], np.float64)
    scores = model.pointer(d.astype(np.float32), encoded.keys)
    e, weights = np.asarray(encoded.keys, np.float64), np.exp(np.asarray(scores, np.float64))
    found = (weights / weights.sum(-1, keepdims=True)) @ e
    kernel, bias = (np.asarray(p[...], np.float64) for p in (model.positions.kernel, model.positions.bias))
    want = (np.concatenate([found, d], -1) @ kernel + bias)[..., :7]
    np.testing.assert_allclose(program(model)(x, read), want, atol=1e-5)
    with pytest.raises(ValueError, match="the source has 10 points, and the decoder a fixed dictionary of 9 positions"):
        model(points(count=10))
    with pytest.raises(ValueError, match="outputs=0: a dictionary has at least 1 position"):
        zoo.create("pointer_network_nano", **SIZES, outputs=0)


def test_more_points_than_before_and_features() -> None:
    """Nothing of a model depends on the number of points."""
    model = zoo.create("pointer_network_nano", **SIZES, depth=2)
    assert jax.eval_shape(lambda x: nnx.clone(model)(x), points(2, 40)).shape == (2, 42, 41)
    maps = jax.eval_shape(lambda x: nnx.clone(model).features(x, [0, 1]), points(2, 5))
    assert [m.shape for m in maps] == [(2, 6, 12)] * 2
    assert {name.split(".")[0] for name in flatten(model)} == {
        "embedding", "start", "end", "encoder", "decoder", "pointer"
    }  # fmt: skip


@pytest.mark.parametrize(("variant", "count"), [("pointer_network_256", 1_185_280), ("pointer_network_512", 4_729_856)])
def test_parameters(variant: str, count: int) -> None:
    """Counted by hand: embedding 3 f, start and end 2 f, two LSTMs of 8 f^2 + 8 f, pointer 2 f^2 + f."""
    f = zoo.variant(variant).config.features
    assert count == 18 * f * f + 22 * f
    assert zoo.summary(variant, input_shape=(5, 2)).parameters == count


def test_what_it_refuses() -> None:
    model = zoo.create("pointer_network_nano", **SIZES)
    with pytest.raises(ValueError, match=r"points of 2 numbers, .*got the shape \(3, 6, 3\)"):
        model(np.zeros((3, 6, 3), np.float32))
    with pytest.raises(ValueError, match="the target points at 7, and the source has 6 points: positions are 1 to 6"):
        model(points(), np.full((3, 2), 7))
    with pytest.raises(ValueError, match=r"context=model.encode\(points, mask\)"):
        model.init_state(3)
    with pytest.raises(ValueError, match="that of MultiHeadAttention grows with the length: take a recurrent mixer"):
        zoo.create("pointer_network_nano", **SIZES, mixer="attention")
    with pytest.raises(ValueError, match="no residual branches to drop"):
        zoo.create("pointer_network_nano", **SIZES, drop_path=0.1)
