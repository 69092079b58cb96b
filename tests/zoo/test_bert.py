"""BERT: heads, pooling, padding, lengths, sizes, and which files it takes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import flatten, parameter_count
from layers.state import flatten_state
from tests.layers.mixer_cases import relative
from tests.tiers import tiered
from zoo.language.bert import RULES
from zoo.plan import plan
from zoo.registry import abstract, configure, variant
from zoo.weights import WeightsError, export

SIZE = {"vocab_size": 29, "features": 16, "depth": 1, "num_heads": 2, "max_length": 12}
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 29, (3, 9)).astype(np.int32)
TYPES = RNG.integers(0, 2, (3, 9)).astype(np.int32)
LENGTHS = np.array([9, 4, 6])
MASK = np.arange(9) < LENGTHS[:, None]


@functools.cache
def made(rngs: int = 0, **options: Any) -> nnx.Module:
    model = zoo.create("bert_tiny", **{**SIZE, **options}, rngs=nnx.Rngs(rngs))
    model.eval()
    return model


@functools.cache
def compiled(model: nnx.Module, method: str) -> Callable[..., jax.Array]:
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, *args: getattr(nnx.merge(graphdef, state), method)(*args))
    return functools.partial(run, state)


def call(model: nnx.Module, *args: Any, method: str = "__call__") -> jax.Array:
    return compiled(model, method)(*args)


def shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in flatten(model).items()}


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in theirs)


# Published for BertModel with its pooler (bert-base, bert-large) and counted by shapes for the rest.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("bert_tiny", 4_385_920),
        ("bert_small", 28_763_648),
        ("bert_base", 109_482_240),
        ("bert_large", 335_141_888),
        ("minilm_l6", 22_713_216),
    ],
)
def test_parameter_counts_with_the_pooler(name: str, count: int) -> None:
    entry = variant(name)
    assert parameter_count(abstract(entry, configure(entry, {"output": "pooled", "pooler": True}))) == count


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (3, 9, 29)),
        ({"output": "pooled"}, (3, 16)),
        ({"output": "pooled", "pool": "average"}, (3, 16)),
        ({"num_classes": 5}, (3, 5)),
    ],
)
def test_padding_changes_nothing(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = made(**options)
    whole = call(model, TOKENS, MASK, TYPES)
    assert whole.shape == shape
    changed = call(model, np.where(MASK, TOKENS, (TOKENS + 7) % 29), MASK, TYPES)
    row, length = 1, LENGTHS[1]
    alone = call(model, TOKENS[row : row + 1, :length], None, TYPES[row : row + 1, :length])[0]
    real = slice(None, length) if not options else ...
    assert relative(whole[row][real], alone) < 1e-5
    assert relative(changed[row][real], alone) < 1e-5


def test_types_default_to_the_first() -> None:
    model = made()
    assert np.array_equal(call(model, TOKENS), call(model, TOKENS, np.ones_like(MASK), np.zeros_like(TYPES)))
    assert relative(call(model, TOKENS, MASK, TYPES), call(model, TOKENS, MASK)) > 1e-3


def test_vectors_are_of_length_one_where_asked() -> None:
    vectors = call(made(output="pooled", pool="average", normalize=True), TOKENS, MASK)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-6)
    plain = call(made(output="pooled", pool="average"), TOKENS, MASK)
    np.testing.assert_allclose(vectors, plain / np.linalg.norm(plain, axis=-1, keepdims=True), rtol=1e-5)


def test_words_already_looked_up() -> None:
    model = made()
    assert np.array_equal(call(model, call(model.embedding, TOKENS), MASK), call(model, TOKENS, MASK))


def test_lengths_up_to_the_table() -> None:
    model = made()
    for length in (12, 1):
        logits = jax.eval_shape(lambda tokens: model(tokens), np.zeros((1, length), np.int32))
        assert logits.shape == (1, length, 29)
    with pytest.raises(ValueError, match="13 tokens is longer than the position table: max_length is 12"):
        model(np.zeros((1, 13), np.int32))


def test_features_are_the_outputs_of_the_blocks() -> None:
    model = made(depth=2)
    (first, last), hidden = jax.jit(
        lambda: (model.features(TOKENS, [0, 1], MASK, TYPES), model.hidden(TOKENS, MASK, TYPES))
    )()
    assert relative(last, hidden) < 1e-6
    assert relative(first, last) > 1e-3
    assert [f.shape for f in jax.eval_shape(lambda: model.features(TOKENS))] == [(3, 9, 16)] * 4


def test_norm_order_lives_in_the_block() -> None:
    pre, post = made(norm_order="pre"), made()
    assert {order for block in pre.blocks for _, order in block.branches} == {"pre"}
    assert set(flatten(pre)) - set(flatten(post)) == {"norm.scale", "norm.bias"}
    hidden = call(post, TOKENS, MASK, method="hidden")
    np.testing.assert_allclose(hidden.mean(-1), 0, atol=1e-6)  # the last thing of a post-norm model is a norm


def test_training_reaches_every_parameter_of_the_masked_head() -> None:
    model = zoo.create("bert_tiny", **SIZE, dropout=0.1)
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params: nnx.State) -> jax.Array:
        logits = nnx.merge(graphdef, params, rest, copy=True)(TOKENS, MASK, TYPES)
        nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(TOKENS)[..., None], -1)[..., 0]
        return jnp.mean(nats, where=jnp.asarray(MASK))

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert 2 < value < 5
    assert [name for name, g in flatten_state(gradient).items() if not np.abs(g).max() > 0] == []
    assert "masked_lm.bias" in flatten_state(gradient)


def test_a_head_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no head over the vocabulary: make it with masked_lm=True"):
        made(output="pooled").logits(jnp.zeros((1, 16)))
    with pytest.raises(ValueError, match="got 'words'"):
        made(output="words")


USES: list[dict[str, Any]] = [{}, {"output": "pooled"}, {"output": "pooled", "pool": "average"}, {"num_classes": 3}]


@pytest.mark.parametrize(
    ("naming", "options"), [("original", USES[0]), ("zoo", USES[1]), *(("transformers", use) for use in USES)]
)
def test_a_file_of_pretraining_fits_whatever_the_model_is_for(naming: str, options: dict[str, Any]) -> None:
    """Files hold heads that a use has no need of: they are kept, and saved again."""
    whole = made(pooler=True, next_sentence=True, rngs=5)
    file = export(whole, naming=naming)
    with (
        pytest.warns(UserWarning, match="the head for 3 classes stays random")
        if options == USES[3]
        else contextlib.nullcontext()
    ):
        model = zoo.create("bert_tiny", weights=file, **SIZE, **options)
    assert same(
        {k: v for k, v in export(model, naming=naming).items() if k.split(".")[0] not in ("classifier", "head")}, file
    )
    assert model.next_sentence(model.first(jnp.ones((3, 9, 16)))).shape == (3, 2)


def test_old_names_of_norms_and_tied_heads() -> None:
    original = export(made(), naming="original")
    assert "bert.embeddings.LayerNorm.gamma" in original
    assert "cls.predictions.decoder.weight" not in original
    tied = {**original, "cls.predictions.decoder.weight": original["bert.embeddings.word_embeddings.weight"]}
    for file in (original, tied):
        assert same(export(zoo.create("bert_tiny", weights=file, **SIZE), naming="original"), original)
    untied = {**tied, "cls.predictions.decoder.weight": tied["cls.predictions.decoder.weight"] + 1}
    with pytest.raises(WeightsError, match="they are one array in the model, and differ in the file"):
        zoo.create("bert_tiny", weights=untied, **SIZE)


def test_bare_names_with_and_without_a_pooler() -> None:
    file = export(made(output="pooled", rngs=3), naming="bare")
    assert "pooler.dense.weight" in file
    file["embeddings.position_ids"] = np.arange(12)[None]
    average = zoo.create("bert_tiny", weights=file, output="pooled", pool="average", **SIZE)
    assert average.pooler is not None
    bare = {name: value for name, value in file.items() if "pooler" not in name}
    assert zoo.create("bert_tiny", weights=bare, output="pooled", pool="average", **SIZE).pooler is None
    with pytest.raises(WeightsError, match=r"2 missing: (bert\.)?pooler.dense.bias, (bert\.)?pooler.dense.weight"):
        zoo.create("bert_tiny", weights=bare, output="pooled", **SIZE)
    with pytest.raises(WeightsError, match=r"missing: cls.predictions"):
        zoo.create("bert_tiny", weights=bare, **SIZE)


def test_another_size_is_named() -> None:
    tiny = nnx.eval_shape(lambda: zoo.create("bert_tiny", max_length=8))
    lines = plan(RULES["transformers"], shapes(tiny), tiny.config)
    file = {name: np.zeros(shape, np.float32) for line in lines for name, shape in line.released_shapes().items()}
    with pytest.raises(
        WeightsError,
        match=r"does not fit bert_small: none of its namings .* the nearest is 'transformers'.* by its shapes it is "
        r"bert_tiny",
    ):
        zoo.create("bert_small", depth=1, vocab_size=64, weights=file)


@pytest.mark.parametrize("dtype", tiered(["float32", "bfloat16", "float16"], lambda dtype: dtype == "float16"))
@pytest.mark.parametrize("pool", ["token", "average"])
def test_vectors_of_length_zero_have_finite_gradients(pool: str, dtype: str) -> None:
    """A row that is all padding, and a model whose vectors are zero."""
    model = made(output="pooled", pool=pool, pooler=False, normalize=True, dtype=dtype)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    nothing = MASK & (np.arange(3) != 1)[:, None]
    silent = jax.tree.map(lambda a: a if a.ndim > 1 else jnp.zeros_like(a), params)  # norms of scale 0

    @jax.jit
    def gradient(params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            return jnp.sum(nnx.merge(graphdef, params, rest)(TOKENS, nothing).astype(jnp.float32) ** 2 * jnp.arange(16))

        return jax.value_and_grad(loss)(params)

    for given in (params, silent):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(given)))


@pytest.mark.parametrize("norm_order", ["pre", "post"])
def test_words_in_padding_may_be_nan(norm_order: str) -> None:
    """Words already looked up: output and every gradient are those of padding that holds zeros."""
    model = made(output="pooled", pool="average", pooler=False, norm_order=norm_order)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    words = RNG.standard_normal((3, 9, 16)).astype(np.float32)

    @jax.jit
    def run(params: Any, words: jax.Array) -> Any:
        return jax.value_and_grad(
            lambda p, words: jnp.sum(nnx.merge(graphdef, p, rest)(words, MASK) ** 2 * jnp.arange(16)), (0, 1)
        )(params, words)

    zeros, nans = (run(params, np.where(MASK[..., None], words, np.float32(fill))) for fill in (0, np.nan))
    jax.tree.map(np.testing.assert_array_equal, nans, zeros)


def test_documents_of_a_row_are_as_if_alone() -> None:
    """Positions and attention restart with each; of several documents there is no one vector."""
    model = made()
    ids = np.array([[0] * 4 + [3] * 5, [1] * 9, [2] * 6 + [0] * 3], np.int32)
    graphdef, state = nnx.split(model)
    packed = jax.jit(lambda state: nnx.merge(graphdef, state).hidden(TOKENS, segment_ids=ids))(state)
    for row, part in ((0, slice(0, 4)), (0, slice(4, 9)), (1, slice(0, 9)), (2, slice(6, 9))):
        length = part.stop - part.start
        tokens = np.zeros((1, 9), np.int32)
        tokens[0, :length] = TOKENS[row, part]
        alone = call(model, tokens, np.arange(9)[None] < length, method="hidden")
        assert relative(packed[row, part], alone[0, :length]) < 1e-5
    with pytest.raises(ValueError, match="one vector for each row: give each document a row of its own"):
        made(output="pooled")(TOKENS, segment_ids=ids)


def test_roles_are_refused_by_mixers_that_have_no_use_for_them() -> None:
    with pytest.raises(ValueError, match="MultiHeadAttention does not honor roles: its tokens have no roles"):
        made()(TOKENS, roles=np.zeros_like(TOKENS))
