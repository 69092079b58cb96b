"""MambaOut against timm with random weights: logits, features, gradients, names, sizes, released checkpoints."""

from __future__ import annotations

from typing import Any

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
PUBLISHED = [name for name in zoo.list_models("mambaout_*") if variant(name).published]
# What an original and one of timm's own are in timm.
KINDS: dict[str, dict[str, Any]] = {
    "mambaout_tiny": {},
    "mambaout_base_wide_rw": {
        "expansion_ratio": 3.0,
        "conv_ratio": 1.5,
        "stem_mid_norm": False,
        "downsample": "conv_nf",
        "ls_init_value": 1e-6,
        "act_layer": "silu",
        "head_fn": "norm_mlp",
    },
}


@pytest.mark.parametrize("name", tiered(KINDS, lambda name: name == "mambaout_tiny"))
def test_matches_timm(name: str, record_property: Any) -> None:
    """On images that no stride divides; and timm reads our file of the authors' names."""
    theirs = timm.models.mambaout.MambaOut(dims=(16, 24), depths=(1, 1), num_classes=10, **KINDS[name])
    state = randomize(theirs)
    ours: Any = zoo.create(name, features=(16, 24), depths=(1, 1), num_heads=(1, 1), num_classes=10)
    assert_matches_timm(name, (theirs, ours, state), images(2, 37, 50, 3), record_property, tolerance=TOLERANCE)

    from timm.models.mambaout import checkpoint_filter_fn

    authors = {key: torch.from_numpy(value.copy()) for key, value in export(ours, naming="mambaout").items()}
    assert same_bits({key: value.numpy() for key, value in checkpoint_filter_fn(authors, theirs).items()}, state)


@pytest.mark.full
def test_whole_model_matches_timm(tmp_path: Any) -> None:
    """Not reduced, and through a file that timm's own code loads."""
    assert_whole_model_matches_timm("mambaout_femto", tmp_path / "model.safetensors", tolerance=TOLERANCE)


@pytest.mark.parametrize("name", tiered(PUBLISHED, lambda name: name in KINDS))
def test_names_sizes_and_releases_are_those_of_timm(name: str) -> None:
    """Of every variant, without allocating it."""
    from timm.models.mambaout import default_cfgs

    assert_listed_as_by_timm(name, name, default_cfgs)


def test_variants_are_those_of_timm() -> None:
    assert set(PUBLISHED) == set(timm.list_models("mambaout_*"))
