"""RMT against recorded outputs of the authors' code: logits, maps, gradients, names, buffers, sizes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import zoo
from tests.references import rmt as recorded
from tests.references import seeded
from tests.references.live import ours_and_gradient, relative, same_bits
from zoo.registry import variant
from zoo.weights import export

pytestmark = pytest.mark.reference

ARRAYS = dict(np.load(recorded.PATH))
ABOUT = json.loads(str(ARRAYS.pop("about")))
TOLERANCE = 1e-5
SIZE = {
    **recorded.SIZE,
    "features": recorded.WIDTHS,
    "decay_ranges": recorded.RANGES,
    "decomposed": tuple(not whole for whole in recorded.WHOLE),
    "layer_scales": tuple(1e-6 if scaled else None for scaled in recorded.SCALED),
    "projection": recorded.PROJECTION,
    "num_classes": recorded.CLASSES,
}


def test_matches_the_authors(record_property: Any) -> None:
    """On maps of odd sides, with both forms of attention."""
    buffers = {name: value for name, value in ARRAYS.items() if ".Relpos." in name}
    shapes = {name: tuple(shape) for name, shape in ABOUT["shapes"].items()}
    state = seeded.weights(shapes, recorded.SEED)
    model: Any = zoo.create("rmt_base", weights={**state, **buffers}, **SIZE)

    def outputs(x: Any) -> list[Any]:
        return [model(x), *model.features(x)]

    found, gradient = ours_and_gradient(outputs, seeded.images(recorded.PIXELS, recorded.SEED))
    ours = {"logits": found[0], "gradient": gradient[:, ::2, 1::2]}
    ours |= {f"features/{i}": feature for i, feature in enumerate(found[1:])}
    assert ours.keys() | buffers.keys() == ARRAYS.keys()
    difference = max(relative(value, ARRAYS[name]) for name, value in ours.items())
    about = {"reference": f"{ABOUT['repository']} {ABOUT['commit'][:8]}", "kind": "recorded", "mapped": len(state)}
    record_property("parity", {**about, "architecture": model.variant, "difference": difference})
    assert difference < TOLERANCE
    exported = export(model, naming="rmt")
    for name, value in buffers.items():  # logarithms and powers of another library differ in their last bits
        np.testing.assert_allclose(exported.pop(name), value, rtol=1e-6)
    assert same_bits(exported, state)


def test_sizes_are_those_of_the_authors() -> None:
    """The registry-driven tests compare ours with the declared counts."""
    declared = {name: variant(f"rmt_{name}").parameters for name in recorded.COUNTED}
    assert declared == ABOUT["counts"]
