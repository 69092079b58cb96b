"""LookHere against recorded outputs of the authors' code: logits, tokens of all blocks, gradients, names, sizes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import zoo
from tests.references import lookhere as recorded
from tests.references import seeded
from tests.references.live import ours_and_gradient, relative, same_bits, torch
from zoo.registry import variant
from zoo.weights import export

pytestmark = pytest.mark.reference

ARRAYS = dict(np.load(recorded.PATH))
ABOUT = json.loads(str(ARRAYS.pop("about")))
TOLERANCE = 1e-5
SIZE = {
    "features": recorded.SIZE["embed_dim"],
    **{name: recorded.SIZE[name] for name in ("depth", "num_heads", "mlp_ratio")},
    "patch_size": recorded.PATCH,
    "image_size": recorded.PIXELS[0],
    "pooler_ratio": recorded.SIZE["mlp_ratio"],
    "num_classes": recorded.CLASSES,
    "fields": recorded.FIELDS,
    "slope": recorded.SLOPE,
    "layer_slopes": recorded.SLOPES,
}


def test_matches_the_authors(tmp_path: Any, record_property: Any) -> None:
    """From a file as they release it, with the penalties rounded as theirs are."""
    shapes = {name: tuple(shape) for name, shape in ABOUT["shapes"].items()}
    state = seeded.weights(shapes, recorded.SEED)
    file = tmp_path / "weights_and_config.pth"
    config = {"head_directions": "-".join(recorded.FIELDS), "global_slope": recorded.SLOPE}
    torch.save({"weights": {key: torch.from_numpy(value) for key, value in state.items()}, "config": config}, file)
    model: Any = zoo.create("lookhere_45_base_patch16_224", weights=file, **SIZE)

    def outputs(x: Any) -> list[Any]:
        maps = model.features(x, range(len(model.blocks)), prefix=True)
        return [model(x), *[part for patches, prefix in maps for part in (prefix, patches)]]

    found, gradient = ours_and_gradient(outputs, seeded.images((1, *recorded.PIXELS, 3), recorded.SEED))
    ours = {"logits": found[0], "gradient": gradient[:, ::2, 1::2]}
    for i, (prefix, patches) in enumerate(zip(found[1::2], found[2::2], strict=True)):
        ours[f"features/{i}"] = np.concatenate([prefix, patches.reshape(1, -1, patches.shape[-1])], 1)
    assert ours.keys() == ARRAYS.keys()
    difference = max(relative(value, ARRAYS[name]) for name, value in ours.items())
    about = {"reference": f"{ABOUT['repository']} {ABOUT['commit'][:8]}", "kind": "recorded", "mapped": len(state)}
    record_property("parity", {**about, "architecture": model.variant, "difference": difference})
    assert difference < TOLERANCE
    assert same_bits(export(model, naming="lookhere"), state)


def test_sizes_are_those_of_the_authors() -> None:
    """The registry-driven tests compare ours with the declared counts."""
    published = [name for name in zoo.list_models("lookhere_*") if variant(name).published]
    assert {variant(name).parameters for name in published} == {ABOUT["count"]}
