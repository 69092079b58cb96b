"""Block-recurrent attention against the recorded layer of its authors, and its initial state against its equations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import MLP, Block, BlockRecurrentAttention, assign, flatten
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.references import block_recurrent as recorded
from tests.tiers import tiered

TOLERANCE = 1e-5


def make(**options: Any) -> BlockRecurrentAttention:
    options = {"num_heads": 2, "window": 4, "states": 3, **options}
    return BlockRecurrentAttention(8, **options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("gate", "cell"), tiered(recorded.CASES, lambda case: case == ("fixed", "skip")))
def test_the_authors_layer(gate: Any, cell: Any, record_property: Any) -> None:
    """Outputs of a whole layer, the state after four windows, and the gradient of the input."""
    rngs = nnx.Rngs(0)
    mixer = BlockRecurrentAttention(
        recorded.FEATURES, num_heads=recorded.HEADS, head_dim=recorded.SIZE, window=recorded.WINDOW,
        states=recorded.STATES, gate=gate, cell=cell, hidden=recorded.HIDDEN, hidden_start=False, rngs=rngs,
    )  # fmt: skip
    channel = MLP(recorded.FEATURES, recorded.HIDDEN, activation=jax.nn.relu, use_bias=False, rngs=rngs)
    block = Block(
        {"mixer": mixer, "channel": channel}, features=recorded.FEATURES, norm="rms", norm_epsilon=1e-6, rngs=rngs
    )
    weights = recorded.ours(recorded.weights(gate, cell))
    assert set(weights) == set(flatten(block))
    assign(block, {name: jnp.asarray(value) for name, value in weights.items()})

    def read(block: Block, x: jax.Array) -> Any:
        def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = block(x)
            return jnp.sum(jnp.sin(y)), y

        (_, y), gradient = jax.value_and_grad(total, has_aux=True)(x)
        _, state = block.extend(x, block.init_state(len(x)))
        return {"output": y, "gradient": gradient, "states": state["mixer"].states}

    got, want = program(read)(block, jnp.asarray(recorded.inputs())), recorded.load()
    difference = max(relative(value, want[f"{gate}_{cell}/{name}"]) for name, value in got.items())
    about = {"architecture": "block_recurrent_attention (layer)", "reference": "google-research/meliad e8af054"}
    record_property("parity", {**about, "kind": "recorded", "mapped": len(weights), "difference": difference})
    assert difference < TOLERANCE


def test_the_first_window() -> None:
    """Nothing is before it: its tokens see those before them and the initial state, which then sees them alone."""
    mixer = make()
    rng = np.random.default_rng(0)
    w = {name: np.asarray(value, np.float64) for name, value in flatten(mixer).items()}
    w |= {name: 2 + rng.standard_normal(2) for name in ("scale", "state_scale", "own_scale", "token_scale")}
    w |= {"initial": rng.standard_normal((3, 8))}
    assign(mixer, {name: jnp.asarray(value, jnp.float32) for name, value in w.items()})
    x = rng.standard_normal((4, 8))

    def heads(a: np.ndarray, name: str, unit: bool = True) -> np.ndarray:
        found = (a @ w[f"{name}.kernel"]).reshape(len(a), 2, 4)
        return found / np.linalg.norm(found, axis=-1, keepdims=True) if unit else found

    def find(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: Any = 0.0) -> np.ndarray:
        logits = np.einsum("qhd,khd->hqk", q, k) + bias
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights = np.where(np.isfinite(logits), weights, 0)
        return np.einsum("hqk,khd->qhd", weights / np.maximum(weights.sum(-1, keepdims=True), 1e-9), v)

    placed = w["initial"] / np.sqrt(np.square(w["initial"]).mean(-1, keepdims=True) + 1e-6) + w["place"]
    own_k, own_v = heads(placed, "own_key"), heads(placed, "own_value", unit=False)
    k, v = heads(x, "key"), heads(x, "value", unit=False)
    i, j = np.mgrid[:4, :4]
    bias = np.where(j < i, w["relative.table"][np.maximum(i - j, 0)].transpose(2, 0, 1), -1e30)
    among = find(heads(x, "query") * w["scale"][:, None], k, v, bias * w["scale"][:, None, None])
    among[0] = 0
    of_state = find(heads(x, "state_query") * w["state_scale"][:, None], own_k, own_v)
    want = np.concatenate([among, of_state], 1).reshape(4, -1) @ w["out.kernel"]
    of_own = find(heads(placed, "own_query") * w["own_scale"][:, None], own_k, own_v)
    of_tokens = find(heads(placed, "token_query") * w["token_scale"][:, None], k, v)
    kept = 1 / (1 + np.exp(-w["gate.bias"]))
    new = np.concatenate([of_own, of_tokens], 1).reshape(3, -1) @ w["project.kernel"]
    y, state = program(lambda mixer, x: mixer.extend(x, mixer.init_state(1)))(mixer, jnp.asarray(x[None], jnp.float32))
    assert relative(y[0], want) < TOLERANCE
    assert relative(state.states[0], kept * w["initial"] + (1 - kept) * new) < TOLERANCE


def test_the_state_does_not_grow() -> None:
    state = jax.eval_shape(lambda: make().init_state(2, 10_000))
    assert state.key.shape == (2, 8, 2, 4)
    assert state.states.shape == (2, 3, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "can't be divided among 3 heads"),
        ({"states": 0}, "at least 1 vector each"),
        ({"gate": "full"}, '"fixed" or "lstm"; "skip", "dual" or "single"'),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
