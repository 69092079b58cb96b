"""The measures of extreme tokens on states that are known, and in models."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from layers import flatten

TOKENS = np.random.default_rng(0).integers(1, 256, (2, 7)).astype(np.int32)


def test_dormant_heads_are_those_of_one_example() -> None:
    """A head that puts 0.9 on the first token in one example and sees itself in the other."""
    length = 5
    dormant = 0.1 * np.eye(length)
    dormant[:, 0] += 0.9
    maps = {"a": np.stack([dormant, np.eye(length)])[:, None], "b": np.stack([-2 * dormant, 3 * dormant])[:, None]}
    found = zoo.dormancy(maps)
    np.testing.assert_allclose(found["a"], [[0.9], [0]], rtol=1e-6)
    np.testing.assert_allclose(found["b"], [[0.9], [0.9]], rtol=1e-6)
    assert zoo.dormancy(maps, token=1)["a"].max() == 0
    with pytest.raises(ValueError, match="queries of a see later keys"):
        zoo.dormancy({"a": np.ones((1, 1, 3, 3))})
    with pytest.raises(ValueError, match="token=4 of 5 tokens of a: no query comes after it"):
        zoo.dormancy(maps, token=4)


def test_a_drained_value_and_a_peak_are_found() -> None:
    """Where the first token's embedding has no value, and is a hundred times as large as the others'."""
    model = zoo.create("transformer_nano", depth=11, features=8, num_heads=2, norm="rms", mlp=None)
    weights = flatten(model)
    embedding = np.random.default_rng(1).standard_normal((256, 8)).astype(np.float32)
    embedding[0] = 100 * np.eye(8)[0]
    value = np.asarray(weights["blocks.0.mixer.value.kernel"]).copy()
    value[0] = 0
    changes = {"embedding.embedding": embedding, "blocks.0.mixer.value.kernel": value}
    changes |= {f"blocks.{i}.mixer.out.kernel": 0 * weights[f"blocks.{i}.mixer.out.kernel"] for i in range(11)}
    zoo.load(model, {**weights, **{name: jnp.asarray(array) for name, array in changes.items()}})
    text = TOKENS.copy()
    text[:, 0] = 0
    drains, peaks = zoo.value_drains(model, text), zoo.residual_peaks(model, text)
    assert list(drains) == [f"blocks.{i}.mixer" for i in range(11)]
    assert list(peaks) == [f"blocks.{i}" for i in range(11)]
    assert drains["blocks.0.mixer"].shape == (2, 7)
    norms = np.linalg.norm(embedding[text], axis=-1)
    expected = (norms / ((norms.sum(1, keepdims=True) - norms) / 6)).mean(0)
    assert expected[0] > 20
    for peak in peaks.values():
        np.testing.assert_allclose(peak, expected, rtol=1e-5)
    normed = embedding[text] / np.sqrt(np.square(embedding[text]).mean(-1, keepdims=True))
    values = np.linalg.norm((normed @ value).reshape(2, 7, 2, 4), axis=-1)
    np.testing.assert_allclose(
        drains["blocks.0.mixer"], (values / ((values.sum(1, keepdims=True) - values) / 6)).mean(0).T, rtol=1e-5
    )
    assert drains["blocks.0.mixer"][:, 0].max() < 1e-6
    with pytest.raises(ValueError, match="there is one token only"):
        zoo.residual_peaks(model, text[:, :1])
