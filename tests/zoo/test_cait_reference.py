"""CaiT against timm with random weights: logits, maps, gradients, names, sizes, releases."""

from __future__ import annotations

from typing import Any

import pytest

import zoo
from tests.references.live import assert_listed_as_by_timm, assert_matches_timm, images, randomize, timm
from tests.tiers import tiered
from zoo.registry import variant

pytestmark = pytest.mark.reference

TOLERANCE = 1e-5
DEPTH, PIXELS = 2, 48
NAMES = [name for name in zoo.list_models("cait_*") if variant(name).published]


@pytest.mark.parametrize("name", tiered(NAMES, lambda name: name == "cait_xxs24_224"))
def test_listed_as_by_timm(name: str) -> None:
    from timm.models.cait import default_cfgs

    assert_listed_as_by_timm(name, name, default_cfgs)


def test_matches_timm(record_property: Any) -> None:
    size = {"depth": DEPTH, "num_heads": 4, "num_classes": 10}
    theirs = timm.create_model("cait_s36_384", embed_dim=32, img_size=PIXELS, **size)
    state = randomize(theirs)
    ours: Any = zoo.create("cait_s36_384", features=32, image_size=PIXELS, **size)
    pair = theirs, ours, state
    options = {"indices": range(DEPTH), "blocks": range(DEPTH)}
    assert_matches_timm(
        "cait_s36_384", pair, images(2, PIXELS, PIXELS, 3), record_property, tolerance=TOLERANCE, **options
    )
