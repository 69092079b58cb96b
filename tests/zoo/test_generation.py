"""Generation: equal to re-running the whole sequence for every language model; sampling, stopping, refusals."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tokenization
import zoo
from tests.tiers import tiered
from zoo.backbones.causal import CausalConfig
from zoo.creation import create_abstract
from zoo.generation import PAST_END

VOCABULARY = 61
PROMPTS = [[5, 9, 2, 44, 17, 9, 2], [3], [60, 1, 1, 8, 30, 12, 7, 7, 50, 4, 23, 19, 2, 11, 0, 33, 41, 6, 58]]
SHRUNK = {
    "vocab_size": VOCABULARY,
    "features": 32,
    "depth": 2,
    "num_heads": 2,
    "num_kv_heads": None,
    "tied": False,
    "embedding_std": 1.0,
}
# And what makes a model that routes read a whole sequence as it generates one, blocks do something, and tables hold it.
SHRUNK_ROUTED = {
    **SHRUNK,
    "routed_heads": 1,
    "membership": "causal",
    "rotary_dimensions": 8,
    "zero_init": False,
    "max_length": 256,
    "attention_every": 2,
}


# Models that bring what generation meets in none before them.
MODELS = (
    "transformer_nano", "mamba_nano", "block_recurrent_transformer_nano", "causalrn_nano", "comba_nano",
    "compressive_transformer_nano", "flowformer_nano", "forgetting_transformer_nano", "gemma_nano", "gptj_nano",
    "gsa_nano", "hgrn2_nano", "jamba_nano", "kimi_linear_experts_nano", "kimi_linear_nano", "landmark_nano",
    "longnet_nano", "memmamba_nano", "memora_nano", "mom_nano", "pythia_nano", "recurrentgemma_nano", "retnet_nano",
    "routing_transformer_nano", "rwkv7_nano", "s4d_nano", "titans_mac_nano", "titans_mag_nano", "transnormer_nano",
    "xlstm_nano",
)  # fmt: skip


def own(name: str) -> dict[str, object]:
    """The options that shrink a model."""
    fields = {field.name for field in dataclasses.fields(zoo.variant(name).config)}
    return {field: value for field, value in SHRUNK_ROUTED.items() if field in fields}


@functools.cache
def tiny(name: str = "transformer_nano", **overrides: object) -> nnx.Module:
    return zoo.create(name, **{**own(name), **overrides})


class Letters:
    """A tokenizer of 61 tokens; the last is "ab", so that strings begin and end inside tokens."""

    vocab_size, separator, key, report = VOCABULARY, 0, "letters", ""
    letters = "\0" + "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,;:!?"

    def encode(self, text: bytes) -> np.ndarray:
        return np.asarray([self.letters.index(letter) for letter in text.decode()])

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join("ab" if token == 60 else self.letters[token] for token in tokens if token > 0)


def rerun(model: nnx.Module, new: int, room: int = 40) -> list[list[int]]:
    """Greedy continuations of PROMPTS by the whole sequences, padded to one length, at each step; a row ends before the
    likeliest token is a near tie.
    """
    graph, state = nnx.split(model)
    logits = jax.jit(
        lambda tokens: nnx.merge(graph, state, copy=True)(tokens)
    )  # a call in training mode may move statistics
    tokens = np.zeros((len(PROMPTS), room), np.int32)
    for row, prompt in zip(tokens, PROMPTS):
        row[: len(prompt)] = prompt
    ends = np.asarray([len(prompt) for prompt in PROMPTS])
    rows = np.arange(len(PROMPTS))
    certain = np.full(len(PROMPTS), new)
    for step in range(new):
        scores = np.asarray(logits(jnp.asarray(tokens)))[rows, ends + step - 1]
        second, first = np.sort(scores, -1)[:, -2:].T
        certain = np.where(first - second > 1e-4 * np.abs(scores).max(-1), certain, np.minimum(certain, step))
        tokens[rows, ends + step] = scores.argmax(-1)
    assert certain.sum() >= 0.6 * certain.size * new, "too many near ties: choose other prompts"
    return [row[end : end + count].tolist() for row, end, count in zip(tokens, ends, certain)]


def assert_equal(found: list[list[int]], expected: list[list[int]]) -> None:
    """As far as ``expected`` is certain."""
    assert [row[: len(other)] for row, other in zip(found, expected)] == expected


DEEP = ("transformer_nano", "mamba_nano")


def shallowest(name: str) -> nnx.Module:
    """One block where all are alike: what several of them hand on is seen in ``DEEP``, and where they differ."""
    model = tiny(name)
    kinds = {nnx.graphdef(block) for block in model.blocks}
    return model if name in DEEP or len(kinds) > 1 or model.per_block() is not None else tiny(name, depth=1)


def met_by(name: str) -> set[object]:
    """What generation meets in a model beside the mixers themselves, whose reading of pieces tests/layers has: the
    kinds of their states, how blocks are joined, what is beside them, and how tokens enter and leave.
    """
    model = create_abstract(name, **own(name))
    graphdef, arrays = nnx.split(model)

    def beside(arrays: nnx.State) -> tuple[object, ...]:
        model = nnx.merge(graphdef, arrays)
        return model.init_state(1, 8).blocks, model.handed_on(jnp.zeros((1, 1, 32))), model.per_block()

    states, *given = jax.eval_shape(beside, arrays)
    kinds = {tuple((part, type(state)) for part, state in block.items()) for block in states}
    c = model.config
    options = c.position, c.embedding_scale != 1, c.embedding_norm, c.logit_cap is None, c.tied, c.head_bias
    branches = {block.branches for block in model.blocks}
    return {*kinds, *branches, *enumerate((len(kinds), *(one is None for one in given), *options))}


@pytest.mark.full
def test_other_models_bring_nothing_new() -> None:
    met = set().union(*map(met_by, MODELS))
    configs = {name: zoo.variant(name).config for name in zoo.list_models()}
    # What differs in numbers alone is one.
    causal = {re.sub(r"[\d.]+", "", repr(c)): name for name, c in configs.items() if isinstance(c, CausalConfig)}
    assert {name: new for name in causal.values() if (new := met_by(name) - met)} == {}


@pytest.mark.parametrize("name", tiered(MODELS, DEEP.__contains__))
def test_equal_to_the_whole_sequence_again(name: str) -> None:
    model = shallowest(name)
    new = zoo.generate(model, PROMPTS, 12, temperature=0)
    assert new.tokens.shape == (3, 12)
    expected = rerun(model, 12)
    assert len({token for row in expected for token in row}) > 4, "too monotonous to tell"
    assert_equal(new.rows(), expected)


@pytest.mark.parametrize(
    "overrides",
    tiered(
        [{"window": 5}, {"position": "learned", "max_length": 31}],
        lambda overrides: "window" in overrides,
    ),
    ids=str,
)
def test_forms_of_the_decoder(overrides: dict[str, object]) -> None:
    model = zoo.create("transformer_nano", **{**SHRUNK, **overrides})
    room = 31 if "max_length" in overrides else 40
    assert_equal(zoo.generate(model, PROMPTS, 12, temperature=0).rows(), rerun(model, 12, room))


def test_a_long_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = zoo.generate(tiny(), PROMPTS, 6, temperature=0).rows()
    monkeypatch.setattr("zoo.generation._PREFILL", 4)
    assert zoo.generate(tiny(), PROMPTS, 6, temperature=0).rows() == whole


def test_forms_of_the_prompt() -> None:
    expected = zoo.generate(tiny(), PROMPTS, 5, temperature=0).rows()
    assert zoo.generate(tiny(), PROMPTS[0], 5, temperature=0).rows() == expected[:1]
    width = max(map(len, PROMPTS))
    tokens = np.asarray([row + [7] * (width - len(row)) for row in PROMPTS])
    mask = np.arange(width) < np.asarray([len(row) for row in PROMPTS])[:, None]
    assert zoo.generate(tiny(), tokens, 5, mask=mask, temperature=0).rows() == expected


def test_pieces_and_seeds() -> None:
    options = {"temperature": 1.3, "top_k": 20, "top_p": 0.9}
    whole = zoo.generate(tiny(), PROMPTS, 11, rngs=jax.random.key(5), **options).tokens
    pieces = list(zoo.stream(tiny(), PROMPTS, 11, rngs=jax.random.key(5), piece=4, **options))
    assert [piece.shape[1] for piece in pieces] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(pieces, 1), whole)
    assert (zoo.generate(tiny(), PROMPTS, 11, rngs=jax.random.key(6), **options).tokens != whole).any()
    rngs = nnx.Rngs(0)
    first, second = (zoo.generate(tiny(), PROMPTS, 11, rngs=rngs).tokens for _ in range(2))
    assert (first != second).any(), "the stream of nnx.Rngs must advance"


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"top_k": 3}, {2, 5, 0}),
        ({"top_p": 0.75}, {2, 5}),
        ({"top_k": 1}, {2}),
        ({"top_p": 1e-6}, {2}),
        ({"top_k": 3, "top_p": 0.85}, {2, 5}),
        ({"min_p": 0.15}, {2, 5, 0}),
        ({"min_p": 0.05, "top_k": 4, "top_p": 0.8}, {2, 5}),
        ({}, {0, 1, 2, 3, 4, 5}),
    ],
)
def test_draws_follow_the_distribution(options: dict[str, float], allowed: set[int]) -> None:
    from zoo.token_sampling import Sampling, Settings

    probability = np.asarray([0.1, 0.05, 0.5, 0.04, 0.01, 0.3], np.float32)
    sampling = Sampling(
        greedy=False, top_k=options.get("top_k"), nucleus="top_p" in options, relative="min_p" in options
    )
    settings = Settings(0.7, options.get("top_p", 1.0), options.get("min_p", 1.0), 1.0, ())
    rows = 20_000
    logits = jnp.tile(jnp.log(probability) * 0.7, (rows, 1))
    drawn = np.asarray(sampling.draw(logits, jax.random.key(0), settings))
    assert set(drawn.tolist()) == allowed
    kept = np.where(np.isin(np.arange(6), list(allowed)), probability, 0)
    frequency = np.bincount(drawn, minlength=6) / rows
    np.testing.assert_allclose(
        frequency, kept / kept.sum(), atol=5 * (0.25 / rows) ** 0.5
    )  # five standard deviations at most


def test_stop_tokens_end_their_row_only() -> None:
    free = zoo.generate(tiny(), PROMPTS, 12, temperature=0).rows()
    stop = next(token for token in free[0] if token not in free[2])
    stopped = zoo.generate(tiny(), PROMPTS, 12, temperature=0, stop=[stop, free[1][0]])
    ends = [next((i + 1 for i, token in enumerate(row) if token in (stop, free[1][0])), 12) for row in free]
    assert min(ends) < 12
    assert stopped.lengths.tolist() == ends
    assert stopped.rows() == [row[:end] for row, end in zip(free, ends)]
    assert all((row[end:] == PAST_END).all() for row, end in zip(stopped.tokens, ends))


def test_text_in_and_out() -> None:
    """Texts begin a document, and end with it; bytes are the tokenizer of a model of 256 tokens."""
    model = tiny()
    prompts = ["He is", "a"]
    found = zoo.generate(model, prompts, 12, tokenizer=Letters(), temperature=0)
    rows = [[0, *Letters().encode(prompt.encode())] for prompt in prompts]
    again = zoo.generate(model, rows, 12, temperature=0, stop=0)
    assert found.rows() == again.rows()
    assert found.texts == [Letters().decode(row) for row in again.rows()]
    assert zoo.generate(model, "a", 12, tokenizer=Letters(), temperature=0).texts == found.texts[1:]
    assert again.texts is None
    written = zoo.generate(zoo.create("transformer_nano", features=16, depth=1, num_heads=2), ["def "], 5, stop=())
    assert written.texts == [bytes(byte for byte in written.rows()[0] if byte).decode(errors="replace")]


def test_stop_strings_end_their_row_only() -> None:
    """Wherever they begin and end inside tokens; the text ends before them, the tokens with the one that completes
    them.
    """
    options = {"tokenizer": Letters(), "temperature": 0, "stop": ()}
    free = zoo.generate(tiny(), ["abc", "xyz"], 40, **options)
    stop = free.texts[0][3:6]
    stopped = zoo.generate(tiny(), ["abc", "xyz"], 40, **{**options, "stop": [stop, "never there"]})
    assert stopped.texts[0] == free.texts[0].partition(stop)[0]
    assert stop in Letters().decode(stopped.rows()[0])
    assert stop not in Letters().decode(stopped.rows()[0][:-1])
    assert stopped.texts[1] == free.texts[1].partition(stop)[0]
    pieces = list(zoo.stream(tiny(), ["abc", "xyz"], 40, **{**options, "stop": stop}, piece=3))
    joined = np.concatenate([np.pad(piece, ((0, 0), (0, 0))) for piece in pieces], 1)
    assert [row[row != PAST_END].tolist() for row in joined] == stopped.rows()
    told = "".join(tokenization.streamed(Letters(), (piece[0] for piece in pieces), stops=[stop]))
    assert told == stopped.texts[0]


@pytest.mark.full
def test_a_penalty_on_repetition() -> None:
    """A strong one lets no token of the prompt, or of the row, come again, and rows do not share theirs."""
    model = tiny()
    found = zoo.generate(model, PROMPTS, 12, temperature=0, repetition_penalty=1e9).rows()
    for prompt, row in zip(PROMPTS, found):
        assert len({*row}) == len(row)
        assert not {*row} & {*prompt}
    assert found[:1] == zoo.generate(model, PROMPTS[:1], 12, temperature=0, repetition_penalty=1e9).rows()
    assert (
        zoo.generate(model, PROMPTS, 12, temperature=0, repetition_penalty=1).rows()
        == zoo.generate(model, PROMPTS, 12, temperature=0).rows()
    )


def test_seeds_are_keys_too_and_names_are_public() -> None:
    a, b = (zoo.generate(tiny(), PROMPTS, 6, rngs=rngs).rows() for rngs in (0, jax.random.key(0)))
    assert a == b
    assert zoo.generate(tiny(), PROMPTS, 6, rngs=1).rows() != a
    assert {"generate", "stream", "Generation", "create", "load", "save", "predict"} <= set(dir(zoo))


def test_generation_ends_when_all_rows_have() -> None:
    first = zoo.generate(tiny(), PROMPTS[0], 1, temperature=0).rows()[0][0]
    pieces = list(zoo.stream(tiny(), PROMPTS[0], 10_000, temperature=0, stop=first, piece=8, max_length=20_000))
    assert [piece.tolist() for piece in pieces] == [[[first]]]


def test_the_model_is_left_as_it_was() -> None:
    model = zoo.create("transformer_nano", **SHRUNK, dropout=0.5)
    model.train()
    a, b = (zoo.generate(model, PROMPTS, 4, temperature=0).rows() for _ in range(2))
    assert a == b
    assert not model.dropout.deterministic


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([[]], 4), {}, "at least one token"),
        (([], 4), {}, "at least one token"),
        (([[3, 61]], 4), {}, "the token 61: the model's vocabulary is 0 to 60"),
        (([[0.5]], 4), {}, "tokens are integers"),
        (([[1]], 0), {}, "max_new_tokens is at least 1"),
        (([[1]], 4), {"temperature": -1.0}, "temperature"),
        (([[1]], 4), {"top_k": 0}, "top_k"),
        (([[1]], 4), {"top_p": 0.0}, "top_p"),
        (([[1]], 4), {"min_p": 1.5}, "min_p is in"),
        (([[1]], 4), {"repetition_penalty": 0.0}, "repetition_penalty is above 0"),
        ((["text"], 4), {}, "the model has 61 tokens, not bytes, and no run's tokenizer: name its tokenizer.json"),
        (([[1]], 4), {"stop": "x"}, "the model has 61 tokens, not bytes"),
        ((["text"], 4), {"tokenizer": tokenization.Bytes()}, "the tokenizer has 256 tokens and the model 61"),
        ((["text", [1]], 4), {"tokenizer": Letters()}, "prompts are texts or tokens, not both: prompt 1 is list"),
        (([[1, 2, 3]], 8), {"max_length": 10}, "11, but max_length=10"),
        ((np.ones((1, 3), int), 4), {"mask": np.asarray([[False, True, True]])}, "padding must trail"),
    ],
)
def test_refusals(arguments: tuple[object, int], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.generate(tiny(), *arguments, **options)


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="Linear is not a causal language model"):
        zoo.generate(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), [1], 4)


def test_more_tokens_than_positions_are_refused() -> None:
    model = zoo.create("transformer_nano", **{**SHRUNK, "depth": 1}, position="learned", max_length=16)
    assert zoo.generate(model, [1] * 12, 4).tokens.shape == (1, 4)
    with pytest.raises(ValueError, match="has positions for 16"):
        zoo.generate(model, [1] * 12, 5)
