"""EVA-02 against timm with random weights: logits, features, gradients, names, sizes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import zoo
from tests.references.live import assert_matches_timm, images, randomize, relative, timm, torch, without_arrays
from tests.tiers import tiered
from zoo.registry import variant

pytestmark = pytest.mark.reference

TOLERANCE = 5e-6
DEPTH, PIXELS = 2, 56
NAMES = [name for name in zoo.list_models("eva02_*") if variant(name).published]


def test_sizes_and_releases_are_those_of_timm() -> None:
    from timm.models.eva import default_cfgs

    for name in NAMES:
        with without_arrays():
            theirs = timm.create_model(name)
        entry = variant(name)
        count = sum(parameter.numel() for parameter in theirs.parameters())
        assert entry.parameters == count, name
        assert entry.config.image_size == theirs.patch_embed.img_size[0], name
        assert entry.config.num_classes == next(iter(entry.releases.values())).classes, name
        assert set(entry.releases) == set(default_cfgs[name].cfgs), name
        for tag, release in entry.releases.items():
            cfg = default_cfgs[name].cfgs[tag]
            shown = {"mean": cfg.mean, "std": cfg.std, "interpolation": cfg.interpolation}
            expected = {**shown, "crop_fraction": cfg.crop_pct, "crop_mode": cfg.crop_mode or "center"}
            assert release.preprocess == expected, name
            assert (release.classes, release.license) == (cfg.num_classes, cfg.license), name


def _pair(name: str) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """timm's model and ours, narrow and shallow, with the same random weights."""
    size = {"depth": DEPTH, "num_heads": 2, "patch_size": 14, "num_classes": 10}
    theirs = timm.create_model(name, embed_dim=32, img_size=PIXELS, dynamic_img_size=True, **size)
    state = randomize(theirs)
    ours = zoo.create(name, features=32, image_size=PIXELS, weights=state, **size)
    return theirs, ours, state


KINDS = ["eva02_tiny_patch14_336", "eva02_base_patch14_448"]


@pytest.mark.parametrize("name", tiered(KINDS, lambda name: "base" in name))
def test_matches_timm(name: str, record_property: Any) -> None:
    """The grid of 4x4 tokens is not that of pre-training, 16x16: rows and columns are stretched."""
    theirs, ours, _ = pair = _pair(name)
    assert_matches_timm(
        name,
        pair,
        images(2, PIXELS, PIXELS, 3),
        record_property,
        tolerance=TOLERANCE,
        indices=range(DEPTH),
        blocks=range(DEPTH),
    )
    other = images(1, 42, 84, 3)
    with torch.no_grad():
        expected_logits = theirs(torch.from_numpy(other.transpose(0, 3, 1, 2).copy())).numpy()
    assert relative(jax.jit(ours)(other), expected_logits) < TOLERANCE
