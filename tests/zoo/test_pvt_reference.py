"""PVT v2 at sizes that patches do not divide, and beside transformers; test_timm_models.py has the rest."""

from __future__ import annotations

from typing import Any

import jax
import pytest

import zoo
from tests.references.live import images, logits_of, randomize, relative, released, same_bits, torch
from tests.references.timm_models import FAMILIES, pair
from zoo.weights import export

pytestmark = pytest.mark.reference

TOLERANCE = 5e-6


@pytest.mark.parametrize("name", list(FAMILIES["pvt"].small))
def test_other_sizes_match_timm(name: str) -> None:
    """Patches that the maps do not fill, and parts that overlap."""
    theirs, ours, state = pair(name)
    zoo.load(ours, state)
    x = images(1, 84, 116, 3)
    assert relative(jax.jit(ours)(x), logits_of(theirs, x)) < TOLERANCE


@pytest.mark.full
def test_matches_transformers(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_sizes": [8, 16, 24],
        "depths": [1, 2, 1],
        "num_attention_heads": [1, 2, 3],
        "mlp_ratios": [2, 2, 2],
    }
    patches = {"num_encoder_blocks": 3, "patch_sizes": [7, 3, 3], "strides": [4, 2, 2], "sr_ratios": [8, 4, 2]}
    theirs = transformers.PvtV2ForImageClassification(
        transformers.PvtV2Config(image_size=64, num_labels=10, **sizes, **patches)
    )
    randomize(theirs)
    state = released(theirs, tmp_path)
    ours = pair("pvt_v2_b0")[1]
    zoo.load(ours, tmp_path)
    assert same_bits(export(ours, naming="transformers"), state)
    x = images(1, 64, 64, 3)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).logits.numpy()
    # Its norms in embeddings and reductions have an epsilon of 1e-6 too, where the authors' have 1e-5.
    assert relative(jax.jit(ours)(x), logits) < 1e-4
