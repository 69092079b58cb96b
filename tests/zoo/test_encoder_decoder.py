"""Encoder-decoders: padded sources, targets read in pieces, mixers of either side, and generation from a source."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import Tokens
from layers.attention.multi_head import MultiHeadAttention
from layers.attention.shared_distances import SharedDistances
from layers.mixer import Place, create_mixer
from primitives import memory
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.tiers import tiered
from tests.zoo.test_generation import VOCABULARY, Letters, assert_equal
from zoo import generation
from zoo.creation import create_abstract

SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "features": 32, "depth": 2, "num_heads": 2, "head_dim": 16}
SMALL["tied"] = False  # a tied head would say the same token again and again
SOURCES = [[5, 9, 2, 44, 17, 9, 2, 1], [3, 1], [60, 2, 2, 8, 30, 12, 7, 7, 50, 4, 23, 19, 2, 11, 0, 33, 41, 6, 58, 1]]
LENGTHS = np.asarray([len(row) for row in SOURCES])
MASK = np.arange(LENGTHS.max()) < LENGTHS[:, None]
SOURCE = np.stack([np.pad(row, (0, MASK.shape[1] - len(row))) for row in SOURCES]).astype(np.int32)
TARGET = np.random.default_rng(0).integers(0, VOCABULARY, (3, 9)).astype(np.int32)
CLOSE = 1e-5
# Both sides as they are, positions of a table and norms after the branches, and mixers that keep no cache.
FORMS: dict[str, dict[str, Any]] = {
    "own": {},
    "post": {
        "position": "learned", "position_offset": 2, "max_length": 32, "norm_order": "post", "embedding_norm": True,
    },
    "recurrent": {"mixer": {"name": "mamba", "state_dim": 4}, "depth": 1},
}  # fmt: skip
forms = pytest.mark.parametrize("form", tiered(FORMS, "own".__eq__))


@functools.cache
def tiny(form: str = "own") -> Any:
    return zoo.create("t5_nano", **{**SMALL, **FORMS[form]})


@forms
def test_padding_of_a_source_changes_nothing(form: str) -> None:
    """Whatever it holds; nor does that of a target."""
    model = tiny(form)
    call = program(model)
    whole = call(SOURCE, TARGET, MASK)
    alone = call(SOURCE[1:2, : LENGTHS[1]], TARGET[1:2])
    assert relative(whole[1:2], alone) < CLOSE
    other = np.where(MASK, SOURCE, 7)
    real = np.arange(TARGET.shape[1]) < np.asarray([9, 4, 6])[:, None]
    padded = call(other, np.where(real, TARGET, 8), MASK, real)
    assert relative(np.where(real[..., None], padded, 0), np.where(real[..., None], whole, 0)) < CLOSE


@forms
def test_a_target_in_pieces(form: str) -> None:
    """The state holds the context and its mask: padding may be not-a-number there too."""
    model = tiny(form)
    context = program(model, "encode")(SOURCE, MASK)
    context = np.where(MASK[..., None], context, np.nan)
    graphdef, arrays = nnx.split(model)

    @jax.jit
    def read(context: jax.Array) -> Any:
        model = nnx.merge(graphdef, arrays, copy=True)
        state, found = model.init_state(3, 12, context=context, context_mask=jnp.asarray(MASK)), []
        for start, end in ((0, 4), (4, 5), (5, 9)):
            y, state = model.extend(jnp.asarray(TARGET[:, start:end]), state)
            found.append(y)
        return jnp.concatenate(found, 1), state.length, model.logits(model.decode(TARGET, context, None, MASK))

    pieces, length, again = read(context)
    whole = program(model)(SOURCE, TARGET, MASK)
    assert relative(pieces, whole) < CLOSE
    assert relative(again, whole) < CLOSE
    assert length.tolist() == [9, 9, 9]


def test_mixers_of_either_side() -> None:
    """A pattern names the side; what can't look back alone is refused where it would have to."""
    mixed = create_abstract("t5_nano", **SMALL, pattern={"0.every": "hydra", "1.0": "mamba"})
    kinds = [[type(block.mixer).__name__ for block in side.blocks] for side in (mixed.encoder, mixed.decoder)]
    assert kinds == [["Hydra", "Hydra"], ["Mamba", "SharedDistances"]]
    assert mixed.encoder.relative is None
    assert mixed.decoder.relative is not None
    replaced = create_abstract("t5_nano", **SMALL, mixer="mamba")
    kinds = [[type(block.mixer).__name__ for block in side.blocks] for side in (replaced.encoder, replaced.decoder)]
    assert kinds == [["Bidirectional"] * 2, ["Mamba"] * 2]
    with pytest.raises(ValueError, match="Hydra is bidirectional only"):
        create_abstract("t5_nano", **SMALL, mixer="hydra")


def test_initial_weights() -> None:
    """Scores are not scaled: queries are as much smaller at first."""
    model = zoo.create("t5_nano", depth=1)
    for mixer in (model.encoder.blocks[0].mixer, model.decoder.blocks[0].cross):
        found = [np.std(np.asarray(layer.kernel[...])) for layer in (mixer.query, mixer.key, mixer.value, mixer.out)]
        assert found == pytest.approx([(128 * 32) ** -0.5, *[128**-0.5] * 3], rel=0.05)
        assert mixer.scale == 1.0


def test_a_partial_constructor_is_offered_what_it_has_not() -> None:
    made = functools.partial(MultiHeadAttention, num_heads=2, use_bias=False)
    mixer: Any = create_mixer(made, 8, causal=True, place=Place(num_heads=4, dropout=0.1), rngs=nnx.Rngs(0))
    assert (mixer.num_heads, mixer.causal, mixer.dropout.rate, mixer.query.bias) == (2, True, 0.1, None)
    with pytest.raises(ValueError, match="has no option 'num_head': did you mean"):
        create_mixer({"name": made, "num_head": 3}, 8, rngs=nnx.Rngs(0))


def test_states_need_a_context() -> None:
    with pytest.raises(ValueError, match=r"a decoder reads a source.*context=model.encode\(source, mask\)"):
        tiny().init_state(2, 8)
    with pytest.raises(ValueError, match="the context has 3 rows and the state 2"):
        tiny().init_state(2, 8, context=jnp.zeros((3, 4, 32)))


def test_too_long_for_a_table_of_positions() -> None:
    model = zoo.create("t5_nano", **{**SMALL, "depth": 1, **FORMS["post"]})
    with pytest.raises(ValueError, match="33 tokens is longer than the position table: max_length is 32"):
        model.encode(jnp.zeros((1, 33), jnp.int32))
    with pytest.raises(ValueError, match="a source of 33 tokens, but the model has positions for 32"):
        zoo.generate(model, source=[[1] * 33], max_new_tokens=4)
    with pytest.raises(ValueError, match="has positions for 32"):
        zoo.generate(model, source=[[1]], max_new_tokens=32)


@pytest.mark.full
def test_memory_is_linear_in_length() -> None:
    """Distances are a table for each side, never a matrix of queries and keys."""

    def needed(length: int) -> int:
        model = create_abstract("t5_nano", **{**SMALL, "depth": 1})
        graphdef, params = nnx.split(model)
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def loss(params: Any, tokens: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params).hidden(tokens, tokens).sum()

        return memory.temporaries(jax.make_jaxpr(jax.grad(loss))(params, tokens))

    assert needed(1 << 14) < 2.2 * needed(1 << 13)


def test_attention_of_both_sides() -> None:
    """Weights of self and of cross attention, the encoder's first; padding of the source has none."""
    model = tiny()
    maps = zoo.attention_maps(model, (SOURCE, TARGET, MASK))
    assert list(maps) == [
        "encoder.blocks.0.mixer", "encoder.blocks.1.mixer",
        *(f"decoder.blocks.{i}.{branch}" for i in range(2) for branch in ("cross", "mixer")),
    ]  # fmt: skip
    cross = maps["decoder.blocks.1.cross"]
    assert cross.shape == (3, 2, TARGET.shape[1], SOURCE.shape[1])
    np.testing.assert_allclose(cross.sum(-1), 1, rtol=1e-5)
    assert not cross[np.broadcast_to(~MASK[:, None, None], cross.shape)].any()
    with pytest.raises(ValueError, match="T5 is called with source and target: give all, as a tuple"):
        zoo.attention_maps(model, SOURCE)
    summary = zoo.summary("t5_nano", (24,), batch_size=2, show=False, **SMALL)
    assert sum(row.parameters for row in summary.rows) == summary.parameters
    assert sum(row.name.startswith("decoder.blocks.") for row in summary.rows) == 2


def test_shared_distances_are_handed_on() -> None:
    mixer = SharedDistances(16, num_heads=2, reach=4, rngs=nnx.Rngs(0))
    x = jnp.zeros((1, 3, 16))
    with pytest.raises(ValueError, match="needs the bias that blocks pass on"):
        mixer(x, None, None, None)
    y, numbers = mixer(x, Tokens(), jnp.ones((2, 9)), None)
    assert (y.shape, numbers.shape) == ((1, 3, 16), (2, 9))
    with pytest.raises(ValueError, match="has its own relative position bias: leave it out"):
        SharedDistances(16, num_heads=2, reach=4, relative="buckets", rngs=nnx.Rngs(0))


def rerun(model: Any, new: int) -> list[list[int]]:
    """Greedy targets of SOURCES by whole calls; a row ends before the likeliest token is a near tie."""
    call, tokens = program(model), np.zeros((len(SOURCES), new + 1), np.int32)
    certain = np.full(len(SOURCES), new)
    for step in range(new):
        scores = np.asarray(call(SOURCE, tokens, MASK))[:, step]
        second, first = np.sort(scores, -1)[:, -2:].T
        certain = np.where(first - second > 1e-4 * np.abs(scores).max(-1), certain, np.minimum(certain, step))
        tokens[:, step + 1] = scores.argmax(-1)
    assert certain.sum() >= 0.6 * certain.size * new, "too many near ties"
    return [row[1 : 1 + count].tolist() for row, count in zip(tokens, certain, strict=True)]


@forms
def test_generation_is_the_whole_target_again(form: str) -> None:
    model = tiny(form)
    expected = rerun(model, 10)
    assert len({token for row in expected for token in row}) > 3, "too monotonous to tell"
    found = zoo.generate(model, source=SOURCES, max_new_tokens=10, temperature=0, stop=()).rows()
    assert_equal(found, expected)
    again = zoo.generate(model, source=SOURCE, source_mask=MASK, max_new_tokens=10, temperature=0, stop=())
    assert again.rows() == found
    if form == "own":
        beams = zoo.beam_search(model, source=SOURCES, max_new_tokens=10, beams=1, stop=())
        assert beams.tokens[:, 0].tolist() == found


def test_a_target_that_has_begun_and_its_end() -> None:
    """A prompt is what the decoder has read; a row ends with the model's end token."""
    free = zoo.generate(tiny(), source=SOURCES, max_new_tokens=10, temperature=0, stop=()).rows()
    begun = [[0, *row[:3]] for row in free]
    rest = zoo.generate(tiny(), begun, 7, source=SOURCES, temperature=0, stop=()).rows()
    assert rest == [row[3:] for row in free]
    ending = zoo.create("t5_nano", **SMALL, end_token=free[0][2])
    found = zoo.generate(ending, source=SOURCES, max_new_tokens=10, temperature=0)
    assert found.rows()[0] == free[0][: free[0].index(free[0][2]) + 1]


def test_lengths_of_sources_share_programs() -> None:
    """Sources and targets of other lengths, and more tokens, compile nothing again."""
    programs = (generation._empty_after, generation._prefill, generation._decode)

    def count() -> list[int]:
        return [function._cache_size() for function in programs]

    options: dict[str, Any] = {"temperature": 0, "stop": ()}
    zoo.generate(tiny(), source=[[3] * 5, [4]], max_new_tokens=10, **options)
    before = count()
    zoo.generate(tiny(), source=[[3] * 16, [4] * 2], max_new_tokens=10, **options)
    zoo.generate(tiny(), [[0, 5, 6], [0]], 10, source=[[1], [2]], **options)
    assert count() == before


def test_text_in_and_out() -> None:
    """A source is between the model's tokens for that, and a target ends before the end token."""
    letters = Letters()
    model = zoo.create("t5_nano", **SMALL, end_token=7, source_start=5)
    texts = ["He is", "a"]
    found = zoo.generate(model, source=texts, max_new_tokens=12, tokenizer=letters, temperature=0)
    rows = [[5, *letters.encode(text.encode()), 7] for text in texts]
    again = zoo.generate(model, source=rows, max_new_tokens=12, temperature=0)
    assert found.rows() == again.rows()
    kept = [row[:-1] if row[-1] == 7 else row for row in again.rows()]
    assert found.texts == [letters.decode(row) for row in kept]
    begun = zoo.generate(model, ["Hm", "x"], 4, source=texts, tokenizer=letters, temperature=0)
    tokens = [[0, *letters.encode(text)] for text in (b"Hm", b"x")]
    assert begun.rows() == zoo.generate(model, tokens, 4, source=rows, temperature=0).rows()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "t5_nano writes what follows from a source: give source="),
        ({"source": [[3], []]}, "each source needs at least one token"),
        ({"source": [[61]]}, "source 0 holds the token 61"),
        ({"source": [[3], [4]], "prompt": [[0]]}, "there are 2 sources and 1 prompts"),
        ({"source": [[3]], "max_new_tokens": None}, "how many tokens"),
    ],
)
def test_refusals(arguments: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.generate(tiny(), **{"max_new_tokens": 4, **arguments})


def test_other_models_take_no_source() -> None:
    decoder = zoo.create("transformer_nano", vocab_size=VOCABULARY, features=16, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="transformer_nano has no encoder that could read a source"):
        zoo.generate(decoder, [[1]], 4, source=[[1]])
    with pytest.raises(ValueError, match="transformer_nano continues a prompt: give one"):
        zoo.beam_search(decoder, max_new_tokens=4)
