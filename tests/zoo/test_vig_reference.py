"""ViG against recorded outputs of the authors' code: logits, tokens of all blocks, gradients, names, sizes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import zoo
from tests.references import seeded
from tests.references import vig as recorded
from tests.references.live import ours_and_gradient, relative, same_bits
from tests.tiers import tiered
from zoo.registry import variant
from zoo.weights import export

pytestmark = pytest.mark.reference

ARRAYS = dict(np.load(recorded.PATH))
ABOUT = json.loads(str(ARRAYS.pop("about")))
TOLERANCE = 1e-5


@pytest.mark.parametrize("kind", tiered(recorded.KINDS, lambda kind: kind == "tiny"))
def test_matches_the_authors(kind: str, record_property: Any) -> None:
    shapes = {name: tuple(shape) for name, shape in ABOUT["shapes"].items()}
    state = seeded.weights(shapes, recorded.SEED)
    size = {"features": recorded.SIZE["embed_dim"], **{name: recorded.SIZE[name] for name in ("depth", "num_heads")}}
    more = {"image_size": recorded.SIDE, "num_classes": recorded.CLASSES}
    model: Any = zoo.create(f"vig_{kind}", weights=state, **size, **more)

    def outputs(x: Any) -> list[Any]:
        return [model(x), *model.features(x, range(len(model.blocks)))]

    found, gradient = ours_and_gradient(outputs, seeded.images((1, recorded.SIDE, recorded.SIDE, 3), recorded.SEED))
    ours = {"logits": found[0], "gradient": gradient[:, ::2, 1::2]}
    ours |= {f"features/{i}": m.reshape(1, -1, m.shape[-1]) for i, m in enumerate(found[1:])}
    theirs = {name.partition("/")[2]: value for name, value in ARRAYS.items() if name.startswith(f"{kind}/")}
    assert ours.keys() == theirs.keys()
    difference = max(relative(value, theirs[name]) for name, value in ours.items())
    about = {"reference": f"{ABOUT['repository']} {ABOUT['commit'][:8]}", "kind": "recorded", "mapped": len(state)}
    record_property("parity", {**about, "architecture": model.variant, "difference": difference})
    assert difference < TOLERANCE
    assert same_bits(export(model, naming="vig"), state)


def test_sizes_are_those_of_the_authors() -> None:
    """The registry-driven tests compare ours with the declared counts."""
    declared = {name: variant(f"vig_{name}").parameters for name in recorded.COUNTED}
    assert declared == ABOUT["counts"]
