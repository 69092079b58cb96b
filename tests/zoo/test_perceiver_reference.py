"""Perceiver IO against transformers: random weights mapped by name, in both directions, with padding and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import assign
from layers.state import flatten_state
from tests.references.live import randomize, relative, released, same_bits, torch, without_arrays
from tests.tiers import tiered
from zoo.registry import variant
from zoo.weights import export

transformers = pytest.importorskip("transformers", reason="the reference implementation needs transformers")

pytestmark = pytest.mark.reference

TOLERANCE, LENGTH, MOST = 1e-5, 9, 14
# Queries of tokens have 8 heads of 32 features whatever the configuration says.
THEIRS: dict[str, Any] = {
    "vocab_size": 31, "d_model": 24, "d_latents": 32, "num_latents": 5, "num_self_attends_per_block": 2,
    "num_blocks": 1, "num_self_attention_heads": 8, "num_cross_attention_heads": 8, "qk_channels": 256,
    "v_channels": 32,
    "max_position_embeddings": MOST, "num_labels": 7,
}  # fmt: skip
OURS: dict[str, Any] = {
    "vocab_size": 31, "features": 32, "depth": 2, "num_heads": 8, "embedding_features": 24, "latents": 5,
    "max_length": MOST,
}  # fmt: skip
TOKENS = np.random.default_rng(1).integers(6, 31, (3, LENGTH))
MASK = np.arange(LENGTH) < np.array([9, 6, 7])[:, None]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tokens": ("PerceiverForMaskedLM", {}),
    "classes": ("PerceiverForSequenceClassification", {"num_classes": 7}),
}


@pytest.mark.parametrize("kind", tiered(KINDS, lambda kind: kind == "tokens"))
def test_matches_transformers(kind: str, tmp_path: Path, record_property: Any) -> None:
    """Output and gradient of the embeddings and every other parameter; names in and out bit for bit.

    What a padded token has is masked in both. transformers has an output at each of the 14 places, and ours at those of
    tokens.
    """
    name, options = KINDS[kind]
    cls = getattr(transformers, name)
    theirs = cls(cls.config_class(**THEIRS))
    randomize(theirs)
    file = released(theirs, tmp_path)
    (tmp_path / "config.json").unlink()
    ours = zoo.create("perceiver_language", weights=tmp_path, **OURS, **options)
    assert same_bits(export(ours, naming="transformers"), file)
    out = theirs(torch.from_numpy(TOKENS), attention_mask=torch.from_numpy(MASK).long()).logits
    expected = out[:, :LENGTH] if kind == "tokens" else out
    torch.sin(expected).sum().backward()
    graphdef, params, rest = nnx.split(ours, nnx.Param, ...)

    def loss(params: nnx.State) -> Any:
        found = nnx.merge(graphdef, params, rest, copy=True)(TOKENS, MASK)
        return jnp.sin(found).sum(), found

    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert found.shape == expected.shape
    carrier = nnx.clone(ours)
    assign(carrier, flatten_state(gradients))
    slopes = export(carrier, naming="transformers")
    wanted = {key: value.grad.numpy() for key, value in theirs.named_parameters() if value.grad is not None}
    assert set(wanted) == set(file)
    differences = [relative(found, expected.detach().numpy())]
    differences += [relative(slopes[key], value) for key, value in wanted.items() if np.abs(value).max() > 1e-6]
    about = {"reference": f"transformers {transformers.__version__}", "kind": "live", "mapped": len(file)}
    record_property("parity", {**about, "architecture": f"perceiver {kind}", "difference": max(differences)})
    assert max(differences) < TOLERANCE


@pytest.mark.full
def test_counted_as_by_transformers() -> None:
    """As released: 256 features of queries and keys, and 1280 of values."""
    config = transformers.PerceiverConfig(qk_channels=256, v_channels=1280)
    with without_arrays():
        theirs = transformers.PerceiverForMaskedLM(config)
    assert sum(p.numel() for p in theirs.parameters()) == variant("perceiver_language").parameters
