"""Beam search against all continuations that there are, against greedy decoding, and against transformers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import zoo
from tests.compilation import program
from zoo.generation import PAST_END

VOCABULARY, NEW, STOP = 5, 4, 3


@pytest.fixture(scope="module")
def model() -> Any:
    made = zoo.create("transformer_nano", vocab_size=VOCABULARY, features=16, depth=1, num_heads=2, embedding_std=0.5)
    for block in made.blocks:
        block.mixer.query.kernel[...] *= 40
        block.mixer.out.kernel[...] *= 40
    return made


@pytest.fixture(scope="module")
def logits(model: Any) -> Callable[..., Any]:
    return program(model)


def continuations(
    logits: Callable[..., Any], prompt: list[int], penalty: float, stop: int | None
) -> list[tuple[float, list[int]]]:
    """Every continuation and its score, the best first."""
    every = np.asarray(list(itertools.product(range(VOCABULARY), repeat=NEW)))
    rows = np.concatenate([np.tile(prompt, (len(every), 1)), every], 1)
    log = np.asarray(jax.nn.log_softmax(logits(rows)))[:, len(prompt) - 1 : -1].astype(np.float64)
    own = np.take_along_axis(log, every[..., None], -1)[..., 0]
    found: dict[tuple[int, ...], float] = {}
    for tokens, probabilities in zip(every.tolist(), own, strict=True):
        end = tokens.index(stop) + 1 if stop in tokens else NEW
        found[tuple(tokens[:end])] = float(probabilities[:end].sum()) / end**penalty
    return sorted(((score, list(tokens)) for tokens, score in found.items()), reverse=True)


@pytest.mark.parametrize("stop", [None, STOP])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_enough_beams_find_the_best_of_all(model: Any, logits: Any, penalty: float, stop: int | None) -> None:
    prompts = [[1, 2], [4, 0, 2]]
    beams = VOCABULARY ** (NEW - 1)  # no continuation is ever dropped
    found = zoo.beam_search(model, prompts, NEW, beams=beams, length_penalty=penalty, stop=stop)
    for row, prompt in enumerate(prompts):
        expected = continuations(logits, prompt, penalty, stop)[:10]
        np.testing.assert_allclose(found.scores[row, :10], [score for score, _ in expected], rtol=1e-4, atol=1e-5)
        best = found.tokens[row, 0][: found.lengths[row, 0]].tolist()
        assert best == expected[0][1]
        assert (found.tokens[row, 0][found.lengths[row, 0] :] == PAST_END).all()


def test_one_beam_is_the_likeliest_token_each_time(model: Any) -> None:
    greedy = zoo.generate(model, [[1, 2], [4, 0, 2]], 6, temperature=0)
    np.testing.assert_array_equal(zoo.beam_search(model, [[1, 2], [4, 0, 2]], 6, beams=1).tokens[:, 0], greedy.tokens)


def test_texts_and_refusals(model: Any) -> None:
    text = zoo.create("transformer_nano", depth=1)
    found = zoo.beam_search(text, ["ab", "c"], 3, beams=2)
    assert found.texts is not None
    assert [len(of_prompt) for of_prompt in found.texts] == [2, 2]
    with pytest.raises(ValueError, match="beams is at least 1, not 0"):
        zoo.beam_search(model, [[1]], 3, beams=0)
    with pytest.raises(ValueError, match="ends at tokens"):
        zoo.beam_search(text, "ab", 3, stop="x")


@pytest.mark.reference
@pytest.mark.full
def test_beams_are_those_of_transformers() -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=61,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    theirs = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    theirs.eval()
    sizes = {"vocab_size": 61, "max_length": 32, "features": 32, "depth": 2, "num_heads": 2}
    ours = zoo.create(
        "gpt2", weights={name: value.detach().numpy() for name, value in theirs.state_dict().items()}, **sizes
    )
    prompt = [[5, 9, 2, 44, 17]]
    want = theirs.generate(
        torch.tensor(prompt), num_beams=4, num_return_sequences=4, do_sample=False, max_new_tokens=12
    )[:, 5:].numpy()
    np.testing.assert_array_equal(zoo.beam_search(ours, prompt, 12, beams=4).tokens[0], want)
