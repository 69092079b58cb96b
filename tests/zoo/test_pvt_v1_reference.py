"""PVT against recorded outputs of the authors' code: logits, maps, gradients, another image size, names, sizes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import zoo
from tests.references import pvt_v1 as recorded
from tests.references import seeded
from tests.references.live import ours_and_gradient, relative, same_bits
from tests.tiers import tiered
from zoo.registry import variant
from zoo.weights import export

pytestmark = pytest.mark.reference

ARRAYS = dict(np.load(recorded.PATH))
ABOUT = json.loads(str(ARRAYS.pop("about")))
TOLERANCE = 1e-5


@pytest.mark.parametrize("side", tiered(recorded.IMAGES, lambda side: side == recorded.IMAGES[0]))
def test_matches_the_authors(side: int, record_property: Any) -> None:
    """At the size of the tables, and at another."""
    shapes = {name: tuple(shape) for name, shape in ABOUT["shapes"].items()}
    state = seeded.weights(shapes, recorded.SEED)
    size = {
        "features": recorded.WIDTHS,
        "num_heads": recorded.HEADS,
        "mlp_ratios": recorded.RATIOS,
        "depths": (1, 1, 1, 2),
    }
    more = {"image_size": recorded.IMAGES[0], "num_classes": recorded.CLASSES}
    model: Any = zoo.create("pvt_tiny", weights=state, **size, **more)

    def outputs(x: Any) -> list[Any]:
        return [model(x), *model.features(x)]

    found, gradient = ours_and_gradient(outputs, seeded.images((1, side, side, 3), recorded.SEED))
    ours = {"logits": found[0], "gradient": gradient[:, ::4, 1::4]}
    ours |= {f"features/{i}": m.reshape(1, -1, m.shape[-1])[:, -4:] for i, m in enumerate(found[1:])}
    difference = max(relative(value, ARRAYS[f"{side}/{name}"]) for name, value in ours.items())
    about = {"reference": f"{ABOUT['repository']} {ABOUT['commit'][:8]}", "kind": "recorded", "mapped": len(state)}
    record_property("parity", {**about, "architecture": model.variant, "difference": difference})
    assert difference < TOLERANCE
    assert same_bits(export(model, naming="pvt"), state)


def test_sizes_are_those_of_the_authors() -> None:
    """The registry-driven tests compare ours with the declared counts."""
    declared = {name: variant(f"pvt_{name}").parameters for name in recorded.COUNTED}
    assert declared == ABOUT["counts"]


def test_the_last_stage_has_a_class_token() -> None:
    with pytest.raises(ValueError, match="FocalModulation takes grids only"):
        zoo.create("pvt_nano", mixer="focal_modulation")
    model: Any = zoo.create("pvt_nano", pattern={"0.every": "focal_modulation"})
    assert [type(stage.blocks[0].mixer).__name__ for stage in model.stages] == ["FocalModulation", "MultiHeadAttention"]
