"""LSG attention against recorded outputs of its authors' layer, and the models that are converted to it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
import zoo
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.references import lsg as recorded
from tests.references.recording import Recording

RECORDING = Recording(recorded)
MASK = recorded.mask()


@pytest.mark.reference
@pytest.mark.parametrize("case", recorded.CASES)
def test_matches_the_authors_layer(case: str, record_property: Any) -> None:
    """Outputs of real tokens and gradients of all, of whole and of padded rows. With "bos_pooling" they let groups of
    padding be seen, where the mean of the lowest numbers that float32 has is minus infinity: whole rows alone.
    """
    kind, block, sparse, factor = recorded.CASES[case]
    options = {"block": block, "sparse_block": sparse, "factor": factor, "num_global": recorded.GLOBAL}
    options |= {"sparsity": {"bos_pooling": "first"}.get(kind, kind), "num_heads": recorded.HEADS}
    mixer = layers.LSGAttention(recorded.FEATURES, **options, rngs=nnx.Rngs(0))  # type: ignore[arg-type]
    state, eye = RECORDING.weights(), jnp.eye(recorded.FEATURES)  # their output layer is another module
    weights = {"out.kernel": eye, "out.bias": jnp.zeros(recorded.FEATURES)}
    for part in ("query", "key", "value"):
        weights |= {
            f"{part}.kernel": jnp.asarray(state[f"{part}.weight"].T),
            f"{part}.bias": jnp.asarray(state[f"{part}.bias"]),
        }
    layers.assign(mixer, weights)
    graphdef, params = nnx.split(mixer)

    @jax.jit
    def run(x: jax.Array) -> Any:
        y, pull = jax.vjp(lambda x: nnx.merge(graphdef, params)(x, MASK), x)
        return y, pull(jnp.where(MASK[..., None], jnp.cos(y), 0))[0]

    got, gradient = run(recorded.tokens())
    arrays = RECORDING.arrays(case)
    rows = 1 if kind == "bos_pooling" else 2
    real = MASK[:rows]
    pairs = (got[:rows][real], arrays["out"][: real.sum()]), (gradient[:rows], arrays["gradient"][:rows])
    difference = max(relative(*pair) for pair in pairs)
    about = {"reference": RECORDING.named(), "kind": "recorded", "mapped": len(state)}
    record_property("parity", {**about, "architecture": f"lsg_attention (layer, {case})", "difference": difference})
    assert difference < 1e-5


BERT: dict[str, Any] = {
    "vocab_size": 61,
    "features": 16,
    "depth": 2,
    "num_heads": 2,
    "max_length": 16,
    "output": "vocabulary",
}
SIZES: dict[str, Any] = {
    "global_rows": 8,
    "stride": 4,
    "block": 4,
    "sparse_block": 4,
    "first": 1,
    "mask": 2,
    "max_length": 40,
}
TOKENS = np.random.default_rng(0).integers(3, 61, (2, 40))


@pytest.mark.parametrize("name", ["bert_tiny", "roberta_base"])
def test_a_converted_model_reads_longer_texts_with_the_same_weights(name: str) -> None:
    model: Any = zoo.create(name, **BERT)
    converted: Any = zoo.convert_to_lsg(model, **SIZES)
    arrays, before = layers.flatten(converted), layers.flatten(model)
    for key in before.keys() - {"position"}:
        assert np.array_equal(arrays[key], before[key]), key
    offset, table = model.config.position_offset, np.asarray(before["position"])
    assert np.array_equal(arrays["position"], np.concatenate([table[:offset], *[table[offset:]] * 3])[: offset + 40])
    # Every second position, 4 apart: 0, 4, 8, 12, then 2, 6, 10, 14.
    words = np.asarray(before["embedding.embedding"])
    added = before["types.embedding"][0] if name == "bert_tiny" else 0
    for row, place in enumerate((0, 4, 8, 12, 2, 6, 10, 14)):
        want = words[2 if row else 1] + table[offset + place] + added
        assert np.allclose(arrays["global_tokens"][row], want, atol=1e-6), row
    assert program(converted)(TOKENS).shape == (2, 40, 61)
    mask = np.arange(40) < np.array([40, 23])[:, None]
    alone = program(converted)(TOKENS[1:, :23])
    assert relative(program(converted)(np.where(mask, TOKENS, 0), mask)[1:, :23], alone) < 1e-5


def test_a_short_text_is_read_with_attention_to_all_and_the_global_token() -> None:
    """As by the model that it was, with the global token's embedding as one word more."""
    model: Any = zoo.create("bert_tiny", **BERT)
    converted: Any = zoo.convert_to_lsg(model, **{**SIZES, "block": 8, "sparse_block": 8}, pool_global=False)
    tokens = TOKENS[:, :15]
    words = model.embedding(tokens)
    first = converted.global_tokens[:1] - model.position[:1] - model.types.embedding[:1]
    words = jnp.concatenate([jnp.broadcast_to(first, (2, 1, 16)), words], 1)
    shifted = nnx.clone(model)
    layers.assign(shifted, {"position": jnp.concatenate([model.position[:1], model.position[:15]])})
    assert relative(program(converted)(tokens), program(shifted)(words)[:, 1:]) < 1e-5


def test_other_models_are_refused() -> None:
    given = {"first": 1, "mask": 2}
    with pytest.raises(ValueError, match=r"takes a BERT or RoBERTa with its own attention, as .* got Encoder albert"):
        zoo.convert_to_lsg(zoo.create("albert_nano", features=16, num_heads=2), **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes a BERT or RoBERTa with its own attention"):
        zoo.convert_to_lsg(zoo.create("bert_tiny", **BERT, mixer="fourier_mixing"), **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="512 global tokens can't be initialized from positions 64 apart of 16"):
        zoo.convert_to_lsg(zoo.create("bert_tiny", **BERT), **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="factor=3 must divide block=4"):
        layers.create_mixer("lsg_attention", 8, num_heads=2, block=4, factor=3, rngs=nnx.Rngs(0))
