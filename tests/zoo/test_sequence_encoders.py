"""Encoders of sequences: pooling, heads on one sequence and on two, inputs that are numbers, and Long Range Arena's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers.state import flatten, parameter_count
from tests.compilation import program
from zoo.backbones.pooling import POOLS, create_pool
from zoo.creation import create_abstract

RNG = np.random.default_rng(0)
LENGTHS = np.array([5, 1, 3])
MASK = np.arange(5) < LENGTHS[:, None]
SMALL: dict[str, Any] = {"vocab_size": 11, "features": 8, "depth": 1, "num_heads": 2, "num_classes": 3, "max_length": 9}
TOKENS = RNG.integers(1, 11, (3, 5)).astype(np.int32)

BRUTE = {
    "token": lambda rows: rows[0],
    "average": lambda rows: rows.mean(0),
    "max": lambda rows: rows.max(0),
    "sum": lambda rows: rows.sum(0),
    "last": lambda rows: rows[-1],
}


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_is_of_the_real_tokens_whatever_padding_holds(name: str) -> None:
    x = RNG.standard_normal((3, 5, 4)).astype(np.float32)
    expected = np.stack([BRUTE[name](row[:length]) for row, length in zip(x, LENGTHS, strict=True)])
    pool = create_pool(name)
    np.testing.assert_allclose(
        pool(jnp.asarray(x), None), np.stack([BRUTE[name](row) for row in x]), rtol=1e-5, atol=1e-6
    )
    fill = np.where(MASK[..., None], x, np.nan)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(pool(x, jnp.asarray(MASK)) ** 2))(jnp.asarray(fill))
    np.testing.assert_allclose(pool(jnp.asarray(fill), jnp.asarray(MASK)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value, (expected**2).sum(), rtol=1e-5)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[~MASK].any()


def test_a_pool_is_a_function_or_a_name() -> None:
    model = zoo.create("lra_nano", **SMALL, pool=lambda x, mask: x[:, 1], head="linear")
    assert model.pool(jnp.arange(24.0).reshape(1, 3, 8))[0, 0] == 8
    with pytest.raises(ValueError, match="unknown pooling 'averages': did you mean 'average'"):
        zoo.create("lra_nano", **SMALL, pool="averages")


def dense(params: dict[str, Any], name: str, x: Any) -> Any:
    return x @ params[f"{name}.kernel"] + params.get(f"{name}.bias", 0)


def norm(params: dict[str, Any], name: str, x: Any) -> Any:
    centered = x - x.mean(-1, keepdims=True)
    return (
        centered / jnp.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * params[f"{name}.scale"]
        + params[f"{name}.bias"]
    )


def plainly(p: dict[str, Any], tokens: np.ndarray, lengths: np.ndarray, heads: int, width: int) -> list[Any]:
    """The first token's vector of each row, by the equations of the paper's model, a row and a head at a time."""
    features = p["norm.scale"].shape[0]
    place = np.arange(9)[:, None] * np.exp(np.arange(0, features, 2) * -(np.log(10000.0) / features))
    table = np.stack([np.sin(place), np.cos(place)], -1).reshape(9, features)
    found = []
    for row, length in zip(tokens, lengths, strict=True):
        x = p["embedding.embedding"][row[:length]] + table[:length]
        y = norm(p, "blocks.0.mixer_norm", x)
        q, k, v = (dense(p, f"blocks.0.mixer.{part}", y) for part in ("query", "key", "value"))
        parts = []
        for head in range(heads):
            at = slice(head * width, (head + 1) * width)
            parts.append(jax.nn.softmax(q[:, at] @ k[:, at].T / np.sqrt(width), -1) @ v[:, at])
        x = x + dense(p, "blocks.0.mixer.out", jnp.concatenate(parts, -1))
        h = dense(p, "blocks.0.channel.up", norm(p, "blocks.0.channel_norm", x))
        h = 0.5 * h * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        found.append(norm(p, "norm", x + dense(p, "blocks.0.channel.down", h))[0])
    return found


@pytest.mark.parametrize("head", ["mlp", "dual"])
def test_the_model_and_its_gradient_are_those_of_the_equations(head: str) -> None:
    """Of plain code, a row and a head at a time, at 1e-4."""
    model = zoo.create("lra_nano", **SMALL, head=head, head_hidden=6, qkv_features=4)
    graphdef, state = nnx.split(model)
    params = {name: np.asarray(leaf) for name, leaf in flatten(model).items()}
    second = {"tokens2": jnp.asarray(TOKENS[::-1, :4]), "mask2": jnp.asarray(MASK[::-1, :4])} if head == "dual" else {}

    def ours(state: Any) -> jax.Array:
        return jnp.sum(nnx.merge(graphdef, state)(jnp.asarray(TOKENS), jnp.asarray(MASK), **second) ** 2)

    def theirs(p: dict[str, Any]) -> jax.Array:
        total = 0.0
        a = plainly(p, TOKENS, LENGTHS, 2, 2)
        b = plainly(p, TOKENS[::-1], np.minimum(LENGTHS[::-1], 4), 2, 2) if head == "dual" else a
        for x, y in zip(a, b, strict=True):
            seen = jnp.concatenate([x, y, x * y, x - y]) if head == "dual" else x
            h = jax.nn.relu(dense(p, "head.hidden", seen))
            if head == "dual":
                h = jax.nn.relu(dense(p, "head.narrow", h))
            total = total + jnp.sum(dense(p, "head.out", h) ** 2)
        return total

    value, gradient = jax.jit(jax.value_and_grad(ours))(state)
    expected, expected_gradient = jax.jit(jax.value_and_grad(theirs))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    found = flatten(nnx.merge(graphdef, gradient))
    assert found.keys() == expected_gradient.keys()
    for name, leaf in expected_gradient.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)


def test_published_sizes() -> None:
    """Counted by hand from the authors' configurations: projections have no biases, and the class token is a row of the
    embedding."""

    def count(vocabulary: int, width: int, qkv: int, mlp: int, blocks: int, classes: int, table: int = 0) -> int:
        block = 4 * width * qkv + 2 * width * mlp + mlp + width + 4 * width
        head = width * mlp + mlp + mlp * classes + classes
        return (vocabulary + table) * width + blocks * block + 2 * width + head

    retrieval = 257 * 128 + 4 * (4 * 128**2 + 2 * 128 * 512 + 512 + 5 * 128) + 256
    retrieval += 512 * 512 + 512 + 512 * 256 + 256 + 256 * 2 + 2
    expected = {
        "lra_listops": count(17, 512, 512, 1024, 4, 10), "lra_text": count(258, 256, 256, 1024, 4, 2),
        "lra_retrieval": retrieval, "lra_image": count(258, 128, 64, 128, 1, 10, 1025),
        "lra_pathfinder": count(257, 32, 16, 32, 4, 2), "lra_pathfinder_64": count(258, 32, 32, 32, 2, 2, 4097),
        "lra_pathfinder_128": count(257, 32, 16, 32, 1, 2, 16384),
        "lra_pathfinder_256": count(258, 32, 32, 32, 2, 2, 65537),
    }  # fmt: skip
    assert {name: parameter_count(create_abstract(name)) for name in expected} == expected


def test_numbers_in_place_of_tokens() -> None:
    options = {**SMALL, "inputs": "linear", "in_features": 2, "pool": "average", "position": "learned"}
    options.pop("vocab_size")
    values = RNG.standard_normal((3, 5, 2)).astype(np.float32)
    model = zoo.create("lra_nano", **options)
    kept = program(model)(jnp.asarray(np.where(MASK[..., None], values, np.nan)), jnp.asarray(MASK))
    alone = model(jnp.asarray(values[2:, :3]))
    np.testing.assert_allclose(kept[2:], alone, rtol=1e-5, atol=1e-6)
    each = zoo.create("lra_nano", **{**options, "num_classes": 0, "output": "vocabulary"})
    assert each(jnp.asarray(values)).shape == (3, 5, 2)
    with pytest.raises(ValueError, match=r"takes \(batch, length, 2\) numbers, got the shape \(3, 5\)"):
        model(jnp.asarray(TOKENS))


@pytest.mark.parametrize("mixer", ["attention", "linear_attention"])
def test_a_causal_encoder_sees_what_was_before(mixer: str) -> None:
    options = {**SMALL, "num_classes": 0, "output": "vocabulary", "mixer": mixer}
    other = TOKENS.copy()
    other[:, 3] = TOKENS[:, 3] % 10 + 1
    changed = {}
    for causal in (True, False):
        run = program(zoo.create("lra_nano", **options, causal=causal))
        change = np.abs(np.asarray(run(jnp.asarray(TOKENS)) - run(jnp.asarray(other)))).max((0, 2))
        changed[causal] = (change > 1e-6).tolist()
    assert changed == {True: [False, False, False, True, True], False: [True] * 5}


def test_misuse_is_answered() -> None:
    dual, single = zoo.create("lra_nano", **SMALL, head="dual"), zoo.create("lra_nano", **SMALL)
    with pytest.raises(ValueError, match="compares two sequences: give tokens2="):
        dual(jnp.asarray(TOKENS))
    with pytest.raises(ValueError, match='tokens2= is for a model with num_classes and head="dual"'):
        single(jnp.asarray(TOKENS), tokens2=jnp.asarray(TOKENS))
    with pytest.raises(ValueError, match="head is one of 'linear', 'mlp', 'dual'; got 'nli'"):
        zoo.create("lra_nano", **SMALL, head="nli")
    with pytest.raises(ValueError, match="qkv_features=5 can't be split over 2 heads"):
        zoo.create("lra_nano", **SMALL, qkv_features=5)
    assert single.config.position == "sinusoid"
    assert single(jnp.ones((1, 30), jnp.int32)).shape == (1, 3), "a fixed table has a row for every place"


def test_a_head_of_hidden_layers_is_recognized_and_replaced(tmp_path: Any) -> None:
    model = zoo.create("lra_nano", **SMALL, head="mlp")
    zoo.save(model, tmp_path / "model.safetensors")
    same = zoo.create("lra_nano", weights=tmp_path / "model.safetensors", **SMALL, head="mlp")
    np.testing.assert_array_equal(same.head.out.kernel[...], model.head.out.kernel[...])
    with pytest.warns(UserWarning, match="has 3 classes: the head for 4 classes stays random"):
        other = zoo.create(
            "lra_nano", weights=tmp_path / "model.safetensors", **{**SMALL, "num_classes": 4}, head="mlp"
        )
    np.testing.assert_array_equal(other.embedding.embedding[...], model.embedding.embedding[...])
