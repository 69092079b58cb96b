"""Feedback of the Block-Recurrent Transformer against its authors' recorded stack; whole, in chunks and by steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import assign, flatten
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.references import block_feedback as recorded
from tests.references.block_recurrent import FEATURES, HEADS, HIDDEN, SIZE, STATES, WINDOW

SIZES: dict[str, Any] = {
    "vocab_size": 11, "features": 12, "depth": 3, "num_heads": 2, "window": 4, "states": 3, "embedding_std": 0.3,
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 15)).astype(np.int32)
LENGTHS = np.array([15, 10])


def make(**options: Any) -> Any:
    """A small model of three layers with feedback, the middle one recurrent."""
    options = {**SIZES, "recurrent_layers": (1,), "feedback": True, **options}
    return zoo.create("block_recurrent_transformer_nano", **options)


def test_the_authors_stack(record_property: Any) -> None:
    """Logits of four windows, and the gradients of the embedding and of queries to the state."""
    recurrent = {
        "name": "block_recurrent_attention", "head_dim": SIZE, "window": WINDOW, "states": STATES, "hidden": HIDDEN,
        "hidden_start": False,
    }  # fmt: skip
    model = make(
        vocab_size=recorded.VOCABULARY, features=FEATURES, depth=recorded.DEPTH, num_heads=HEADS, head_dim=SIZE,
        hidden=HIDDEN, window=WINDOW, states=STATES, embedding_scale=1.0, pattern={"1": recurrent},
    )  # fmt: skip
    weights = recorded.ours()
    assert {name: a.shape for name, a in weights.items()} == {name: a.shape for name, a in flatten(model).items()}
    assign(model, {name: jnp.asarray(value) for name, value in weights.items()})

    def read(model: nnx.Module, tokens: jax.Array) -> Any:
        def total(model: Any) -> tuple[jax.Array, jax.Array]:
            logits = model(tokens)
            return jnp.sum(jnp.sin(logits)), logits

        (_, logits), gradient = nnx.value_and_grad(total, has_aux=True)(model)
        return logits, nnx.state(gradient)

    logits, gradient = program(read)(model, jnp.asarray(recorded.tokens()))
    found = {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(gradient)}
    want = recorded.load()
    differences = [relative(logits, want["logits"])]
    differences += [relative(found[ours], want[theirs]) for theirs, ours in recorded.GRADIENTS.items()]
    about = {"architecture": "block_recurrent_transformer (feedback)", "reference": "google-research/meliad e8af054"}
    record_property("parity", {**about, "kind": "recorded", "mapped": len(weights), "difference": max(differences)})
    assert max(differences) < 1e-5


@pytest.mark.full
def test_whole_chunks_and_steps() -> None:
    """Each row with its own count, at any cut."""
    model = make()
    whole = program(model)(TOKENS, jnp.arange(15) < LENGTHS[:, None])
    for most in (1, 7):
        state, extend = model.init_state(2), program(model, "extend")
        done, rng = np.zeros(2, int), np.random.default_rng(1)
        while (done < LENGTHS).any():
            count = np.minimum(rng.integers(min(most, 2) - 1 or 1, most + 1, 2), LENGTHS - done)
            piece = np.stack([np.pad(row, (0, most))[start : start + most] for row, start in zip(TOKENS, done)])
            y, state = extend(piece, state, np.arange(most) < count[:, None])
            for row in range(2):
                wanted = whole[row, done[row] : done[row] + count[row]]
                np.testing.assert_allclose(y[row, : count[row]], wanted, atol=2e-5)
            done += count
        assert state.length.tolist() == LENGTHS.tolist()


@pytest.mark.full
def test_documents_of_a_row() -> None:
    """They begin where windows do, whole, and anywhere after other tokens; the state of the one before is not read."""
    model = make()
    ids = np.repeat([[5, 9]], [8, 7], axis=1).repeat(2, 0)
    alone = program(model)(TOKENS[:, 8:])
    assert relative(program(model)(TOKENS, None, None, ids)[:, 8:], alone) < 1e-5
    extend = program(model, "extend")
    _, state = extend(TOKENS[:, :3], model.init_state(2), None, np.full((2, 3), 7))
    two = np.repeat([[7, 8]], [2, 7], axis=1).repeat(2, 0)
    y, _ = extend(np.concatenate([TOKENS[:, :2], TOKENS[:, 8:]], 1), state, None, two)
    assert relative(y[:, 2:], alone) < 1e-5
    with pytest.raises(ValueError, match="documents must begin at multiples of 4, not at 6"):
        model(TOKENS, segment_ids=np.repeat([[0, 1]], [6, 9], axis=1))


@pytest.mark.full
def test_low_layers_read_what_high_ones_have_left() -> None:
    """A token of the first window moves the first layer's output in the second, which its own window does not reach,
    and no output of its own window's other tokens before it.
    """
    model = make(window=3, recurrent_layers=(-1,))
    changed = TOKENS.copy()
    changed[:, 0] = (changed[:, 0] + 1) % 11
    first, other = (program(lambda model, x: model.features(x, [0]))(model, x)[0] for x in (TOKENS, changed))
    moved = np.abs(np.asarray(first - other)).max((0, 2))
    assert (moved[4:] > 1e-7).all()
    without = make(window=3, recurrent_layers=(-1,), feedback=False)
    first, other = (program(lambda model, x: model.features(x, [0]))(without, x)[0] for x in (TOKENS, changed))
    assert (np.abs(np.asarray(first - other)).max((0, 2))[4:] == 0).all()
    assert relative(model.features(TOKENS, [2], norm=True)[0], model.hidden(TOKENS)) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": "attention"}, "no layer keeps a state that the others could read"),
        ({"dropout": 0.1}, "supports no random choices .*: leave dropout out"),
        ({"mlp": {"name": "experts", "num_experts": 2}}, "leave experts out"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
