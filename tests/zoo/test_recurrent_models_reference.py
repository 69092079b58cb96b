"""Recurrent language models against recorded logits and gradients of their authors' code, by its names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import assign
from layers.state import flatten_state
from tests.references import recurrent_models as recorded
from tests.tiers import tiered
from zoo.weights import export, load

TOLERANCE = 1e-4
SIZES = {
    "vocab_size": recorded.VOCABULARY, "features": recorded.FEATURES, "depth": recorded.DEPTH,
    "num_heads": recorded.HEADS
}  # fmt: skip
FLA: dict[str, Any] = {"hidden": 24, "tied": False}
RELATION: dict[str, Any] = {"num_heads": 1, "max_length": recorded.LENGTH}
# Of each recorded model: ours, its options, the naming, and what the reference is called.
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "rwkv7": (
        "rwkv7_nano",
        {"decay_rank": 3, "rate_rank": 4, "residual_rank": 5, "gate_rank": 6},
        "authors",
        "BlinkDL/RWKV-LM",
    ),
    "rwkv6": ("rwkv6_nano", {"hidden": 32, "shift_rank": 3, "decay_rank": 4}, "authors", "BlinkDL/RWKV-LM"),
    "transnormer": ("transnormer_nano", FLA, "authors", "weigao266/TNL-MoE"),
    "causal_relation": ("causalrn_nano", RELATION, "authors", "FrankCuiCN/causal-relation-networks"),
    "causal_relation_linear": (
        "causalrn_nano",
        {**RELATION, "form": "linear"},
        "authors",
        "FrankCuiCN/causal-relation-networks",
    ),
    "landmark": ("landmark_nano", {"period": 3}, "authors", "epfml/landmark-attention"),
    "landmark_retrieving": (
        "landmark_nano",
        {"period": 3, "retrieved": 2, "local": 3},
        "authors",
        "epfml/landmark-attention",
    ),
    "longhorn": ("longhorn_nano", {"state_dim": 4, "tied": False}, "authors", "Cranial-XIX/longhorn"),
    "xlstm": ("xlstm_block_nano", {"channels": 64, "tied": False}, "authors_cpu", "NX-AI/xlstm"),
    "comba": ("comba_nano", FLA, "fla", "flash-linear-attention"),
    "kda": ("kda_nano", FLA, "fla", "flash-linear-attention"),
    "forgetting_transformer": (
        "forgetting_transformer_nano",
        {**FLA, "gated": True},
        "fla",
        "flash-linear-attention",
    ),
}


@pytest.mark.parametrize("case", tiered(CASES, {"rwkv7"}.__contains__))
def test_recorded_logits_and_gradients(case: str, record_property: Any) -> None:
    """And the file comes back bit for bit."""
    name, options, naming, reference = CASES[case]
    model = zoo.create(name, **{**SIZES, **options})
    expected, gradients = recorded.load(case)
    weights = recorded.weights({key: gradient.shape for key, gradient in gradients.items()})
    model = load(model, weights, naming=naming)
    again = export(model, naming=naming)
    again.pop("pre_block.pos", None)  # a constant
    assert again.keys() == weights.keys()
    assert all(np.array_equal(again[key], weight) for key, weight in weights.items())

    @nnx.jit
    def run(model: Any) -> Any:
        def loss(model: Any) -> Any:
            logits = model(jnp.asarray(recorded.tokens()))
            return jnp.sin(logits).sum(), logits

        return nnx.grad(loss, has_aux=True)(model)

    ours, logits = jax.device_get(run(model))
    carrier = nnx.clone(model)
    assign(carrier, flatten_state(ours))
    by_name = export(carrier, naming=naming)
    scale = max(float(np.abs(gradient).max()) for gradient in gradients.values())
    wrong = {key: np.abs(by_name[key] - g).max() / scale for key, g in gradients.items()}
    assert {key: value for key, value in wrong.items() if value > TOLERANCE} == {}
    difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
    about = {"architecture": case, "reference": reference, "kind": "recorded", "mapped": len(weights)}
    record_property("parity", {**about, "difference": difference})
    assert difference < TOLERANCE
