"""ECA-Net against recorded outputs of the authors' code: logits, maps, gradients, names, sizes; timm's are with ResNet's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import zoo
from tests.references import eca as recorded
from tests.references import seeded
from tests.references.live import ours_and_gradient, relative, same_bits
from zoo.registry import variant
from zoo.weights import export

pytestmark = pytest.mark.reference

ARRAYS = dict(np.load(recorded.PATH))
ABOUT = json.loads(str(ARRAYS.pop("about")))
TOLERANCE = 1e-5


def test_matches_the_authors(record_property: Any) -> None:
    """On a map whose sides are odd in most stages."""
    shapes = {name: tuple(shape) for name, shape in ABOUT["shapes"].items()}
    state = seeded.weights(shapes, recorded.SEED)
    gates = [{"name": "eca", "kernel_size": size} for size in recorded.KERNELS]
    size = {"depths": (1, 1, 1, 1), "num_classes": recorded.CLASSES, "gate": gates}
    model: Any = zoo.create("eca_resnet18_k3577", weights=state, **size)

    def outputs(x: Any) -> list[Any]:
        return [model(x), *model.features(x)]

    found, gradient = ours_and_gradient(outputs, seeded.images(recorded.PIXELS, recorded.SEED))
    ours = {"logits": found[0], "gradient": gradient[:, ::2, 1::2]}
    ours |= {f"features/{i}": feature[:, ::2, ::2, ::4] for i, feature in enumerate(found[1:])}
    assert ours.keys() == ARRAYS.keys()
    difference = max(relative(value, ARRAYS[name]) for name, value in ours.items())
    about = {"reference": f"{ABOUT['repository']} {ABOUT['commit'][:8]}", "kind": "recorded", "mapped": len(state)}
    record_property("parity", {**about, "architecture": model.variant, "difference": difference})
    assert difference < TOLERANCE
    assert same_bits(export(model, naming="ecanet"), state)


def test_sizes_are_those_of_the_authors() -> None:
    """The registry-driven tests compare ours with the declared counts."""
    assert {name: variant(name).parameters for name in zoo.list_models("eca_resnet*")} == ABOUT["counts"]
