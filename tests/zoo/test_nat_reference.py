"""NAT, DiNAT and DiNAT_s against recorded outputs of the authors' code: logits, maps, gradients, names, sizes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import zoo
from tests.references import nat as recorded
from tests.references import seeded
from tests.references.live import ours_and_gradient, relative, same_bits
from tests.tiers import tiered
from zoo.registry import variant
from zoo.vision.nat import neighborhood
from zoo.weights import export

pytestmark = pytest.mark.reference

ARRAYS = dict(np.load(recorded.PATH))
ABOUT = json.loads(str(ARRAYS.pop("about")))
TOLERANCE = 1e-5
SIZE = {
    "features": (recorded.WIDTH, 2 * recorded.WIDTH),
    "depths": recorded.DEPTHS,
    "num_heads": recorded.HEADS,
    "mlp_ratio": 2.0,
    "num_classes": recorded.CLASSES,
}
OWN: dict[str, dict[str, Any]] = {
    "nat_small": {"window": recorded.WINDOW},
    "dinat_tiny": {"window": recorded.WINDOW, "dilations": (4, 1)},
    "dinat_s_tiny": {
        "pattern": {f"0.{index}": neighborhood(recorded.WINDOW, 4, index) for index in range(2)}
        | {"1.0": neighborhood(recorded.WINDOW, 1, 0)}
    },
}


@pytest.mark.parametrize("name", tiered(OWN, lambda name: name == "dinat_tiny"))
def test_matches_the_authors(name: str, record_property: Any) -> None:
    """On maps whose sides the dilation does not divide."""
    kind = name.rpartition("_")[0]
    shapes = {key: tuple(shape) for key, shape in ABOUT["shapes"][kind].items()}
    state = seeded.weights(shapes, recorded.SEED)
    model: Any = zoo.create(name, weights=state, **SIZE, **OWN[name])

    def outputs(x: Any) -> list[Any]:
        return [model(x), *model.features(x)]

    found, gradient = ours_and_gradient(outputs, seeded.images(recorded.IMAGES[kind], recorded.SEED))
    ours = {"logits": found[0], "gradient": gradient[:, ::2, 1::2]}
    ours |= {f"features/{i}": feature[:, ::2] for i, feature in enumerate(found[1:])}
    theirs = {key.partition("/")[2]: value for key, value in ARRAYS.items() if key.startswith(f"{kind}/")}
    assert ours.keys() == theirs.keys()
    difference = max(relative(value, theirs[key]) for key, value in ours.items())
    about = {"reference": f"{ABOUT['repository']} {ABOUT['commit'][:8]}", "kind": "recorded", "mapped": len(state)}
    record_property("parity", {**about, "architecture": model.variant, "difference": difference})
    assert difference < TOLERANCE
    assert same_bits(export(model), state)


def test_sizes_are_those_of_the_authors() -> None:
    """The registry-driven tests compare ours with the declared counts."""
    assert {name: variant(name).parameters for name in ABOUT["counts"]} == ABOUT["counts"]
    published = {
        name for pattern in ("nat_*", "dinat_*") for name in zoo.list_models(pattern) if variant(name).published
    }
    assert published == set(ABOUT["counts"])
