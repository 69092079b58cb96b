"""PVT v2 against timm and transformers with random weights: logits, features, gradients, names, sizes, released
checkpoints.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import zoo
from tests.references.live import (
    assert_listed_as_by_timm,
    assert_matches_timm,
    images,
    logits_of,
    randomize,
    relative,
    released,
    same_bits,
    timm,
    torch,
)
from tests.tiers import tiered
from zoo.registry import variant
from zoo.weights import export

pytestmark = pytest.mark.reference

TOLERANCE = 5e-6
SMALL: dict[str, Any] = {
    "features": (8, 16, 24),
    "depths": (1, 2, 1),
    "num_heads": (1, 2, 3),
    "mlp_ratios": (2.0, 2.0, 2.0),
    "num_classes": 10,
}
RELEASED = [name for name in zoo.list_models("pvt_v2_*") if variant(name).published]


def _pair(name: str) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """timm's model and ours, narrow and shallow, with the same random weights."""
    sizes = {
        "embed_dims": SMALL["features"],
        "depths": SMALL["depths"],
        "num_heads": SMALL["num_heads"],
        "mlp_ratios": SMALL["mlp_ratios"],
    }
    theirs = timm.create_model(name, **sizes, num_classes=10)
    state = randomize(theirs)
    ours = zoo.create(name, **SMALL)
    ours.eval()
    return theirs, ours, state


@pytest.mark.parametrize("name", tiered(["pvt_v2_b0", "pvt_v2_b2_li"], lambda name: name == "pvt_v2_b0"))
def test_matches_timm(name: str, record_property: Any) -> None:
    theirs, ours, _ = pair = _pair(name)
    assert_matches_timm(name, pair, images(2, 64, 64, 3), record_property, tolerance=TOLERANCE)
    # Patches that the maps do not fill, and parts that overlap.
    x = images(1, 84, 116, 3)
    assert relative(jax.jit(ours)(x), logits_of(theirs, x)) < TOLERANCE


def test_authors_names() -> None:
    """The names of the authors' files, which timm maps to its own."""
    from timm.models.pvt_v2 import checkpoint_filter_fn

    theirs, ours, state = _pair("pvt_v2_b0")
    zoo.load(ours, state)
    authors = export(ours, naming="pvt")
    assert {name.split(".")[0].rstrip("1234") for name in authors} == {"patch_embed", "block", "norm", "head"}
    remapped = checkpoint_filter_fn({name: torch.from_numpy(array.copy()) for name, array in authors.items()}, theirs)
    assert same_bits({name: value.numpy() for name, value in remapped.items()}, state)
    assert same_bits(export(zoo.load(ours, authors), naming="timm"), state)


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
    ours = zoo.create("pvt_v2_b0", **SMALL)
    zoo.load(ours, tmp_path)
    assert same_bits(export(ours, naming="transformers"), state)
    x = images(1, 64, 64, 3)
    with torch.no_grad():
        logits = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).logits.numpy()
    # Its norms in embeddings and reductions have an epsilon of 1e-6 too, where the authors' have 1e-5.
    assert relative(jax.jit(ours)(x), logits) < 1e-4


@pytest.mark.full
def test_whole_model_matches_timm() -> None:
    theirs = timm.create_model("pvt_v2_b0")
    state = randomize(theirs)
    ours = zoo.create("pvt_v2_b0", weights=state)
    ours.eval()
    x = images(1, 224, 224, 3)
    assert relative(jax.jit(ours)(x), logits_of(theirs, x)) < TOLERANCE


@pytest.mark.parametrize("name", tiered(RELEASED, lambda name: name in ("pvt_v2_b5", "pvt_v2_b2_li")))
def test_names_sizes_and_releases_are_those_of_timm(name: str) -> None:
    """Of every variant, without allocating it."""
    from timm.models.pvt_v2 import default_cfgs

    assert_listed_as_by_timm(name, name, default_cfgs)


def test_variants_are_those_of_timm() -> None:
    assert set(RELEASED) == set(timm.list_models("pvt_v2_*"))
