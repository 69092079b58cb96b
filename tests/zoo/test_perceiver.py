"""Perceiver IO: latents attend only to tokens that are not padding, at a cost linear in the tokens, and what it
refuses.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import zoo
from layers.state import assign, flatten
from primitives import operations
from tests.compilation import program
from tests.layers.mixer_cases import relative
from zoo.creation import create_abstract

SIZES: dict[str, Any] = {
    "vocab_size": 11, "features": 16, "depth": 2, "num_heads": 2, "embedding_features": 12, "latents": 5,
    "key_features": 8, "max_length": 40,
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 12)).astype(np.int32)
MASK = np.arange(12) < np.array([12, 7])[:, None]


def made(**options: Any) -> Any:
    """A model none of whose parameters is small."""
    model = zoo.create("perceiver_nano", **SIZES, **options)
    rng = np.random.default_rng(1)
    assign(model, {n: v + 0.3 * rng.standard_normal(v.shape).astype(np.float32) for n, v in flatten(model).items()})
    return model


def test_padding_is_not_read() -> None:
    """Nor do more places change what is found at a place."""
    model = made()
    found = program(model)(TOKENS, MASK)
    others = np.where(MASK, TOKENS, 10 - TOKENS)
    assert relative(np.asarray(program(model)(others, MASK)), found) < 1e-6
    alone = program(model)(TOKENS[1:, :7])
    assert relative(np.asarray(found)[1:, :7], alone) < 1e-5
    assert relative(np.asarray(program(model)(others)), found) > 1e-2


def test_the_cost_is_linear_in_the_length() -> None:
    graph, arrays = nnx.split(create_abstract("perceiver_nano", **{**SIZES, "max_length": 4096}))

    def count(length: int) -> int:
        tokens = jax.ShapeDtypeStruct((1, length), np.int32)
        return operations.count(lambda arrays, tokens: nnx.merge(graph, arrays)(tokens), arrays, tokens).total

    first, second, third = map(count, (1024, 2048, 3072))
    assert second > first
    assert abs((third - second) / (second - first) - 1) < 0.01


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"inputs": "linear", "in_features": 3}, (2, 12, 3)),
        pytest.param({"num_classes": 4, "mixer": "linear_attention"}, (2, 4), marks=pytest.mark.full),
        pytest.param({"output": "pooled", "pool": "average"}, (2, 16), marks=pytest.mark.full),
    ],
    ids=str,
)
def test_other_forms(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    x = np.eye(11, 3, dtype=np.float32)[TOKENS] if "inputs" in options else TOKENS
    assert program(made(**options))(x, MASK).shape == shape


def test_features_are_of_latents() -> None:
    assert [x.shape for x in jax.eval_shape(made().features, TOKENS)] == [(2, 5, 16)] * 4


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="the latents of a Perceiver see all tokens: it can't be causal"):
        made(causal=True)
    with pytest.raises(ValueError, match="give each document a row of its own"):
        made()(TOKENS, segment_ids=np.zeros((2, 12), np.int32))
    with pytest.raises(ValueError, match="no query for each token"):
        made(num_classes=3).hidden(TOKENS)
    with pytest.raises(ValueError, match="a sequence of 41 tokens is longer than the position table"):
        made()(np.zeros((1, 41), np.int32))
