"""FocalNet against timm with random weights: logits, features, gradients, names, sizes, released checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import zoo
from tests.references.live import (
    assert_listed_as_by_timm,
    assert_matches_timm,
    assert_whole_model_matches_timm,
    images,
    randomize,
    same_bits,
    timm,
    torch,
)
from tests.tiers import tiered
from zoo.registry import variant
from zoo.weights import export

pytestmark = pytest.mark.reference

TOLERANCE = 1e-5
PUBLISHED = [name for name in zoo.list_models("focalnet_*") if variant(name).published]
# What a small model and a huge one, which has all that the large ones differ in, are in timm.
KINDS: dict[str, dict[str, Any]] = {
    "focalnet_tiny_lrf": {"focal_levels": (3, 3)},
    "focalnet_huge_fl4": {
        "focal_levels": (4, 4),
        "use_post_norm": True,
        "use_post_norm_in_modulation": True,
        "use_overlap_down": True,
        "layerscale_value": 1e-4,
        "normalize_modulator": True,
    },
}


def pair(name: str) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """timm's model and ours, narrow and shallow, with the same random weights."""
    theirs = timm.models.focalnet.FocalNet(embed_dim=16, depths=(1, 1), num_classes=10, **KINDS[name])
    state = randomize(theirs)
    options = {"features": (16, 32), "depths": (1, 1), "num_heads": (1, 1), "num_classes": 10}
    ours = zoo.create(name, **options, normalize_modulator="normalize_modulator" in KINDS[name])
    zoo.load(ours, state)
    return theirs, ours, state


@pytest.mark.parametrize("name", tiered(KINDS, lambda name: name == "focalnet_tiny_lrf"))
def test_matches_timm(name: str, record_property: Any) -> None:
    """On images that no stride divides; and timm reads our file of the authors' names."""
    theirs, ours, state = pair(name)
    assert_matches_timm(name, (theirs, ours, state), images(2, 37, 50, 3), record_property, tolerance=TOLERANCE)

    from timm.models.focalnet import checkpoint_filter_fn

    authors = {key: torch.from_numpy(value.copy()) for key, value in export(ours, naming="focalnet").items()}
    assert same_bits({key: value.numpy() for key, value in checkpoint_filter_fn(authors, theirs).items()}, state)


@pytest.mark.full
def test_whole_model_matches_timm(tmp_path: Any) -> None:
    """Not reduced, and through a file that timm's own code loads."""
    assert_whole_model_matches_timm("focalnet_tiny_srf", tmp_path / "model.safetensors", tolerance=TOLERANCE)


@pytest.mark.parametrize("name", tiered(PUBLISHED, lambda name: name in KINDS))
def test_names_sizes_and_releases_are_those_of_timm(name: str) -> None:
    """Of every variant, without allocating it."""
    from timm.models.focalnet import default_cfgs

    assert_listed_as_by_timm(name, name, default_cfgs)


def test_variants_are_those_of_timm() -> None:
    assert set(PUBLISHED) == set(timm.list_models("focalnet_*"))
