"""CSWin against recorded outputs of the authors' code: logits, maps, gradients, names, sizes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import zoo
from tests.references import cswin as recorded
from tests.references import seeded
from tests.references.live import ours_and_gradient, relative, same_bits
from zoo.registry import variant
from zoo.weights import export

pytestmark = pytest.mark.reference

ARRAYS = dict(np.load(recorded.PATH))
ABOUT = json.loads(str(ARRAYS.pop("about")))
TOLERANCE = 1e-5


def test_matches_the_authors(record_property: Any) -> None:
    """With stripes in two stages; in the third they are as wide as the map."""
    shapes = {name: tuple(shape) for name, shape in ABOUT["shapes"].items()}
    state = seeded.weights(shapes, recorded.SEED)
    size = {
        "features": tuple(recorded.WIDTH * 2**stage for stage in range(4)),
        "depths": recorded.DEPTHS,
        "num_heads": recorded.HEADS,
        "stripes": (*recorded.STRIPES[:3], None),
        "mlp_ratio": recorded.RATIO,
        "image_size": recorded.SIDE,
        "num_classes": recorded.CLASSES,
    }
    model: Any = zoo.create("cswin_tiny_224", weights=state, **size)

    def outputs(x: Any) -> list[Any]:
        return [model(x), *model.features(x)]

    pixels = seeded.images((1, recorded.SIDE, recorded.SIDE, 3), recorded.SEED)
    found, gradient = ours_and_gradient(outputs, pixels)
    ours = {"logits": found[0], "gradient": gradient[:, ::4, 1::4]}
    ours |= {f"features/{i}": m.reshape(1, -1, m.shape[-1])[:, ::5] for i, m in enumerate(found[1:])}
    assert ours.keys() == ARRAYS.keys()
    difference = max(relative(value, ARRAYS[name]) for name, value in ours.items())
    about = {"reference": f"{ABOUT['repository']} {ABOUT['commit'][:8]}", "kind": "recorded", "mapped": len(state)}
    record_property("parity", {**about, "architecture": model.variant, "difference": difference})
    assert difference < TOLERANCE
    assert same_bits(export(model, naming="cswin"), state)


def test_sizes_are_those_of_the_authors() -> None:
    """The registry-driven tests compare ours with the declared counts."""
    assert {name: variant(name).parameters for name in ABOUT["counts"]} == ABOUT["counts"]
