"""Landmarks are put in and taken out inside the model: texts, logits, states and generation have none."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import assign, flatten
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.tiers import tiered
from zoo.weights import export, load

SIZES: dict[str, Any] = {"vocab_size": 11, "features": 16, "depth": 2, "num_heads": 2, "embedding_std": 1.0}
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 23)).astype(np.int32)
LLAMA = {"mlp": "swiglu", "norm": "rms", "norm_epsilon": 1e-6, "rotary": 10000.0, "tied": False}
LENGTHS = np.array([23, 14])
RETRIEVING = {"retrieved": 1, "local": 2}


def test_a_landmark_is_a_token_that_nobody_sees() -> None:
    """As a decoder is given whose vocabulary has one token more, that is put in by hand."""
    model = zoo.create("landmark_nano", period=5, **SIZES)
    mixer = {"name": "landmark_attention", "period": 5, "rotary": model.config.rotary}
    plain = zoo.create(
        "transformer_nano", mixer=mixer, mlp="gelu", norm="unbiased_layer", **{**SIZES, "vocab_size": 12}
    )
    weights = flatten(model)
    landmark = weights.pop("landmark")
    weights["embedding.embedding"] = jnp.concatenate([weights["embedding.embedding"], landmark])
    assign(plain, weights)
    woven = np.insert(TOKENS, np.arange(4, 24, 4), 11, axis=1)
    found, wanted = program(model)(TOKENS), program(plain)(woven)
    assert found.shape == (2, 23, 11)
    assert relative(found, np.asarray(wanted)[woven != 11].reshape(2, 23, 12)[..., :11]) < 1e-5


def test_llama_with_landmarks() -> None:
    """A text of less than a block is read as by the decoder that was given landmarks."""
    model = zoo.create("landmark_nano", period=25, **SIZES, **LLAMA)
    files = export(model, naming="llama")
    assert files["lm_head.weight"].shape == files["model.embed_tokens.weight"].shape == (12, 16)
    plain = {**SIZES, "vocab_size": 12, "num_kv_heads": 2, "norm_epsilon": 1e-6, "tied": False}
    llama = load(zoo.create("llama_nano", **plain), files)
    assert relative(program(model)(TOKENS), program(llama)(TOKENS)[..., :11]) < 1e-5
    other = zoo.create("landmark_nano", period=25, **SIZES, **LLAMA, rngs=nnx.Rngs(1))
    again = export(load(other, files), naming="llama")
    assert all(np.array_equal(again[name], array) for name, array in files.items())


@pytest.mark.parametrize("options", tiered([{}, RETRIEVING], lambda options: not options), ids=["all", "retrieving"])
def test_read_piece_by_piece(options: dict[str, int]) -> None:
    """Each row with its own count; the state is made for so many words."""
    model = zoo.create("landmark_nano", period=4, **SIZES, **options)
    whole = program(model)(TOKENS, jnp.arange(23) < LENGTHS[:, None])
    state, extend = model.init_state(2, max_length=23), program(model, "extend")
    done, rng = np.zeros(2, int), np.random.default_rng(1)
    while (done < LENGTHS).any():
        count = np.minimum(rng.integers(0, 6, 2), LENGTHS - done)
        piece = np.stack([np.pad(row[start : start + 5], (0, max(0, start - 18))) for row, start in zip(TOKENS, done)])
        y, state = extend(piece, state, np.arange(5) < count[:, None])
        for row in range(2):
            wanted = whole[row, done[row] : done[row] + count[row]]
            np.testing.assert_allclose(y[row, : count[row]], wanted, atol=2e-4)
        done += count
    assert state.length.tolist() == LENGTHS.tolist()


@pytest.mark.parametrize("options", [{}, {"mixer": "attention"}], ids=["landmarks", "attention"])
def test_documents_of_a_row(options: dict[str, str]) -> None:
    """They begin where blocks do, in words, whatever the mixer; landmarks of the one before are not seen."""
    model = zoo.create("landmark_nano", period=4, **SIZES, **options)
    assert model.segment_multiple == 3
    ids = np.repeat([[0, 1]], [9, 14], axis=1).repeat(2, 0)
    packed = program(model)(TOKENS, None, None, ids)
    assert relative(packed[:, 9:], program(model)(TOKENS[:, 9:])) < 1e-5
    assert zoo.create("landmark_nano", period=4, **SIZES, **RETRIEVING).segment_multiple == 6


@pytest.mark.parametrize("options", [{}, {"mixer": "attention"}])
def test_a_period_below_2_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="a landmark ends every block of period=1 tokens, itself included: give at"):
        zoo.create("landmark_nano", period=1, **options)
