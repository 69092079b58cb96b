"""Transformer-XL against recorded logits and gradients of its authors' code; what learns in the Compressive
Transformer.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import assign, collecting, flatten, parameter_count
from layers.module import AuxLoss
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.references import transformer_xl as recorded
from tests.tiers import tiered
from zoo.creation import create_abstract

TOLERANCE = 1e-5
SIZES: dict[str, Any] = {
    "vocab_size": recorded.VOCABULARY, "features": recorded.FEATURES, "depth": recorded.DEPTH,
    "num_heads": recorded.HEADS, "hidden": recorded.HIDDEN,
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("case", recorded.CASES)
def test_the_authors_code(case: str, record_property: Any) -> None:
    """Logits of a text of several segments, of which ours is read at once, and gradients of the first segment."""
    segment, memory, clamp = recorded.CASES[case]
    model = zoo.create("transformer_xl_nano", **SIZES, segment=segment, memory=memory, clamp=clamp)
    weights = recorded.ours(recorded.weights())
    assert set(weights) == set(flatten(model))
    assign(model, {name: jnp.asarray(value) for name, value in weights.items()})
    want = recorded.load()

    def loss(model: nnx.Module, tokens: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(model(tokens)))

    tokens = jnp.asarray(recorded.tokens())
    differences = [relative(program(model)(tokens), want[f"{case}/logits"])]
    gradient = nnx.to_flat_state(program(nnx.grad(loss))(model, tokens[:, :segment]))
    found = {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in gradient}
    for theirs, ours in recorded.GRADIENTS.items():
        own = found[ours] if ours in found else found[f"{ours}.kernel"].T
        differences.append(relative(own, want[f"{case}/{theirs}"]))
    about = {"architecture": "transformer_xl", "reference": "kimiyoung/transformer-xl 44781ed2", "kind": "recorded"}
    record_property("parity", {**about, "mapped": len(weights), "difference": max(differences)})
    assert max(differences) < TOLERANCE


@pytest.mark.parametrize("name", recorded.PUBLISHED)
def test_the_authors_count(name: str) -> None:
    """Ours have u and v in each layer, and no bias of logits."""
    vocabulary, depth, heads, _, size, _ = recorded.PUBLISHED[name]
    theirs = int(recorded.load()[f"count/{name}"])
    assert parameter_count(create_abstract(name)) == theirs + (depth - 1) * 2 * heads * size - vocabulary


def test_the_compression_alone_learns_from_its_loss() -> None:
    """One loss a layer, of which the sum reaches f of each."""
    sizes = {**SIZES, "segment": 4, "memory": 4, "compressed": 3}
    model = zoo.create("compressive_transformer_nano", **sizes)

    def loss(model: nnx.Module, tokens: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        with collecting(AuxLoss) as sown:
            model(tokens)
        found = sown.named(model)
        return sum(found.values()), found

    (_, found), gradient = program(nnx.value_and_grad(loss, has_aux=True))(
        model, jnp.asarray(recorded.tokens()[:, :21])
    )
    assert set(found) == {f"blocks.{i}.mixer.compression" for i in range(recorded.DEPTH)}
    assert min(map(float, found.values())) > 0
    learning = {".".join(map(str, path)) for path, leaf in nnx.to_flat_state(gradient) if np.abs(leaf[...]).max() > 0}
    assert learning == {
        f"blocks.{i}.mixer.compress.{part}" for i in range(recorded.DEPTH) for part in ("kernel", "bias")
    }


@pytest.mark.parametrize(
    "name", tiered(["compressive_transformer_nano", "transformer_xl_nano"], lambda name: name.startswith("compr"))
)
def test_generation_over_segments(name: str) -> None:
    """What is generated in constant memory is what whole sequences give."""
    sizes = {**SIZES, "segment": 4, "memory": 4, **({"compressed": 3} if "compressive" in name else {})}
    model = zoo.create(name, **sizes, embedding_std=1.0, tied=False)
    prompt = recorded.tokens()[0, :5]
    new = zoo.generate(model, [prompt], 20, temperature=0).tokens[0]
    text = jnp.concatenate([jnp.asarray(prompt), jnp.asarray(new)])
    want = np.argmax(program(model)(text[None]), -1)[0, 4:-1]
    assert len(set(new.tolist())) > 2
    np.testing.assert_array_equal(new, want)
    small, large = (jax.eval_shape(lambda n=n: model.init_state(1, n)) for n in (32, 32_768))
    assert small == large
