"""Models with randomized positions: tables and mixers get the same, and texts are read in pieces as whole."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import Tokens
from layers.state import assign, flatten
from tests.compilation import program
from tests.layers.mixer_cases import relative

SIZES: dict[str, Any] = {"vocab_size": 12, "features": 16, "depth": 2, "num_heads": 2, "max_length": 64}
TOKENS = np.random.default_rng(0).integers(0, 12, (2, 10)).astype(np.int32)
MASK = np.arange(10) < np.array([10, 7])[:, None]


def made(name: str, **options: Any) -> Any:
    """A model in evaluation mode, none of whose parameters is small."""
    model = zoo.create(name, **SIZES, **options)
    rng = np.random.default_rng(1)
    assign(model, {n: v + 0.2 * rng.standard_normal(v.shape).astype(np.float32) for n, v in flatten(model).items()})
    model.eval()
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"position": "learned"},
        pytest.param({"rotary": 100.0}, marks=pytest.mark.full),
        pytest.param({"position": "learned", "mixer": "mamba"}, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_a_text_in_pieces(options: dict[str, Any]) -> None:
    model = made("transformer_nano", randomized=20, **{"rotary": None, **options})
    whole = program(model)(TOKENS, MASK)
    plain = made("transformer_nano", **{"rotary": None, **options})
    assert relative(np.asarray(program(plain)(TOKENS, MASK))[MASK], np.asarray(whole)[MASK]) > 1e-3
    graph, arrays = nnx.split(model)
    extend = jax.jit(lambda tokens, state, mask: nnx.merge(graph, arrays).extend(tokens, state, mask))
    state, found = model.init_state(2, 20), []
    for part in (slice(0, 4), slice(4, 5), slice(5, 10)):
        logits, state = extend(TOKENS[:, part], state, MASK[:, part])
        found.append(logits)
    assert relative(np.concatenate(found, 1)[MASK], np.asarray(whole)[MASK]) < 1e-5
    written = zoo.generate(model, TOKENS, 10, temperature=0.0)
    again = TOKENS
    for _ in range(3):
        again = np.concatenate([again, np.asarray(program(model)(again))[:, -1:].argmax(-1)], 1)
    assert np.array_equal(written.tokens[:, :3], again[:, 10:])
    with pytest.raises(ValueError, match="11 new ones are 21, but the model has positions for 20"):
        zoo.generate(model, TOKENS, 11)


@pytest.mark.full
@pytest.mark.parametrize("position", ["learned", "sinusoid"])
def test_an_encoder(position: str) -> None:
    """It is the plain one whose table has the rows that were drawn, and whose attention knows them too."""
    given = {"position": position, "mlp_ratio": 2.0, "mixer": {"name": "attention", "relative": "alibi"}}
    model = made("bert_tiny", randomized=30, **given)
    found = program(model)(TOKENS, MASK)
    positions = model.places(Tokens(MASK), 10)
    assert len({tuple(row[:7]) for row in np.asarray(positions)}) == 2  # those of 10 tokens and of 7
    x = model.embed(TOKENS, positions=positions)
    x = model.blocks(x, Tokens(MASK, positions=positions))[0]
    assert relative(np.asarray(found)[MASK], np.asarray(model.logits(x))[MASK]) < 1e-5
    for row, size in enumerate((10, 7)):
        alone = program(model)(TOKENS[row : row + 1, :size])
        assert relative(np.asarray(found)[row, :size], alone[0]) < 1e-5
    model.train()
    first, second = (np.asarray(model(TOKENS)) for _ in range(2))
    assert relative(first, second) > 1e-3  # drawn anew
    with pytest.raises(ValueError, match="a sequence of 31 tokens is longer than randomized=30"):
        model(np.zeros((1, 31), np.int32))
    with pytest.raises(ValueError, match="FourierMixing does not honor positions"):
        made("bert_tiny", randomized=30, position=None, mixer="fourier_mixing")(TOKENS)
