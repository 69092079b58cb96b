"""HVT against recorded outputs of the authors' code: logits, tokens of all blocks, gradients, names, sizes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import zoo
from tests.compilation import program
from tests.references import hvt as recorded
from tests.references import seeded
from tests.references.live import ours_and_gradient, relative, same_bits
from zoo.registry import variant
from zoo.weights import export

pytestmark = pytest.mark.reference

ARRAYS = dict(np.load(recorded.PATH))
ABOUT = json.loads(str(ARRAYS.pop("about")))
TOLERANCE = 1e-5
SIZE = {"features": 32, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0, "num_classes": recorded.CLASSES, "pool_every": 2}


def _state() -> dict[str, np.ndarray]:
    shapes = {name: tuple(shape) for name, shape in ABOUT["shapes"].items()}
    return seeded.weights(shapes, recorded.SEED)


def test_matches_the_authors(record_property: Any) -> None:
    state = _state()
    model = zoo.create("hvt_small_4", weights=state, image_size=recorded.SIDE, **SIZE)
    blocks = range(len(model.blocks))

    def outputs(x: Any) -> list[Any]:
        return [model(x), *[tokens for tokens, _ in model.features(x, blocks)]]

    found, gradient = ours_and_gradient(outputs, seeded.images((2, recorded.SIDE, recorded.SIDE, 3), recorded.SEED))
    ours = {"logits": found[0], "gradient": gradient[:, ::4, 1::4]}
    ours |= {f"features/{i}": feature for i, feature in enumerate(found[1:])}
    assert ours.keys() == ARRAYS.keys()
    assert [feature.shape[1] for feature in found[1:]] == [12, 12, 5, 5]
    difference = max(relative(ours[name], ARRAYS[name]) for name in ours)
    about = {"reference": f"{ABOUT['repository']} {ABOUT['commit'][:8]}", "kind": "recorded", "mapped": len(state)}
    record_property("parity", {**about, "architecture": model.variant, "difference": difference})
    assert difference < TOLERANCE
    assert same_bits(export(model, naming="hvt"), state)


def test_sizes_are_those_of_the_authors() -> None:
    """The registry-driven tests compare ours with the declared counts."""
    declared = {name: variant(f"hvt_{name}").parameters for name in recorded.COUNTED}
    assert declared == ABOUT["counts"]


def test_weights_of_another_image_size_are_resampled() -> None:
    """Both tables of positions: those of the patches by row and column, those of pooled tokens along the sequence."""
    with pytest.warns(UserWarning, match="was made for a grid of") as told:
        model = zoo.create("hvt_small_4", weights=_state(), image_size=112, **SIZE)
    assert sorted(str(warning.message) for warning in told) == [
        "blocks.reductions.0.position.table was made for a grid of 1x12 and is resampled to 1x24",
        "blocks.reductions.2.position.table was made for a grid of 1x5 and is resampled to 1x11",
        "position.table was made for a grid of 5x5 and is resampled to 7x7",
    ]
    assert model.blocks.reductions["2"].position.table.shape == (1, 11, 32)
    small = zoo.create("hvt_small_4", weights=_state(), image_size=recorded.SIDE, **SIZE)
    x = seeded.images((1, 112, 112, 3), recorded.SEED)
    assert relative(program(small)(x), program(model)(x)) < 1e-5
