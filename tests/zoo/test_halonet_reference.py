"""HaloNet against timm with random weights and statistics: logits, features, gradients, names, sizes, releases."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import zoo
from tests.references.live import assert_listed_as_by_timm, assert_matches_timm, images, randomize, timm
from tests.tiers import tiered
from zoo.registry import variant

pytestmark = pytest.mark.reference

TOLERANCE = 1e-5
PUBLISHED = [name for name in zoo.list_models() if variant(name).family == "halonet" and variant(name).published]
# By what the widths are divided, and the blocks of each stage that are left.
SMALL: dict[str, tuple[int, tuple[int, ...]]] = {
    "halonet26t": (8, (1, 1, 2, 1)),
    "halonet50ts": (8, (1, 4, 2, 2)),
    "sehalonet33ts": (8, (1, 3, 3, 1)),
    "eca_halonext26ts": (4, (1, 1, 2, 1)),
    "halonet_h1": (4, (1, 1, 1, 1)),
}


def _pair(name: str) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """timm's model and ours, narrow and shallow and with blocks of 4x4 tokens, with the same random weights."""
    scale, depths = SMALL[name]
    whole = timm.models.byoanet.model_cfgs[name]
    stages = []
    for stage, depth in zip(whole.blocks, depths, strict=True):
        for part in (kept := timm.models.byobnet.expand_blocks_cfg(stage)[:depth]):
            part.c //= scale
            part.self_attn_kwargs = part.self_attn_kwargs and {**part.self_attn_kwargs, "block_size": 4}
        stages.append(tuple(kept))
    attention = {**whole.self_attn_kwargs, "block_size": 4}
    final = whole.num_features // scale
    config = dataclasses.replace(
        whole, blocks=tuple(stages), stem_chs=whole.stem_chs // scale, self_attn_kwargs=attention, num_features=final
    )
    theirs = timm.models.byobnet.ByobNet(config, num_classes=10)
    state = randomize(theirs)
    ours: Any = variant(name).config
    options: dict[str, Any] = {
        "features": tuple(width // scale for width in ours.features),
        "widths": tuple(width // scale for width in ours.widths),
        "stem": tuple(width // scale for width in ours.stem),
        "depths": depths,
        "window": 4,
        "final": final or None,
        "num_classes": 10,
    }
    if isinstance(ours.gate, tuple):  # timm rounds the hidden features to multiples of 8
        options["gate"] = [{"name": "squeeze_excite", "hidden": 8}] * 4
    return theirs, zoo.create(name, **options), state


@pytest.mark.parametrize("name", tiered(SMALL, lambda name: name == "halonet26t"))
def test_matches_timm(name: str, record_property: Any) -> None:
    """timm has the last convolution in the last map; and it wants maps that its blocks divide."""
    stages = range(3 if variant(name).config.final else 4)  # type: ignore[attr-defined]
    x = images(1, 128, 128, 3) if name == "halonet50ts" else images(1, 64, 128, 3)
    maps: dict[str, Any] = {"indices": [1 + stage for stage in stages], "blocks": stages}
    assert_matches_timm(name, _pair(name), x, record_property, tolerance=TOLERANCE, **maps)


@pytest.mark.parametrize("name", tiered(PUBLISHED, lambda name: name == "halonet26t"))
def test_names_sizes_and_releases_are_those_of_timm(name: str) -> None:
    """Of every variant, without allocating it."""
    from timm.models.byoanet import default_cfgs

    assert_listed_as_by_timm(name, name, default_cfgs)
