"""BiFormer against recorded outputs of the authors' code: logits, features, attention, routed regions, gradients,
names; test_recorded_models.py compares sizes.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import Diagnostic, collecting
from layers.mixer import Mixer
from tests.references import biformer as recorded
from tests.references.comparing import ours_and_gradient, relative, same_bits
from tests.references.recording import Recording, kept
from zoo.weights import export

TOLERANCE = 5e-6
RECORDING = Recording(recorded)
WEIGHTS = RECORDING.weights(sharpness=recorded.SHARPNESS)


@pytest.fixture(scope="module")
def model() -> nnx.Module:
    size = {
        "features": recorded.FEATURES,
        "stem": (4, 8),
        "depths": recorded.DEPTHS,
        "num_heads": (1, 2, 4, 8),
        "num_classes": recorded.CLASSES,
    }
    made = zoo.create("biformer_tiny", weights=WEIGHTS, **size)
    made.eval()
    return made


def _traced(model: nnx.Module, images: jax.Array) -> dict[str, Any]:
    """Logits, features, and the outputs of every mixer with the regions it chose."""
    outputs: dict[str, Any] = {}
    mixers = {id(module): path for path, module in nnx.iter_modules(model) if isinstance(module, Mixer)}
    original = {kind: kind.__call__ for kind in {type(m) for _, m in nnx.iter_modules(model) if isinstance(m, Mixer)}}

    def spied(kind: type) -> Any:
        def call(self: Any, *args: Any, **options: Any) -> Any:
            out = original[kind](self, *args, **options)
            outputs[".".join(str(part) for part in mixers[id(self)])] = out
            return out

        return call

    with pytest.MonkeyPatch.context() as patch, collecting(Diagnostic, name="routes") as sown:
        patch.setattr("layers.stack._is_staged", lambda x: False)  # equal blocks would be traced once, as a copy
        for kind in original:
            patch.setattr(kind, "__call__", spied(kind))
        features = model.features(images)
        routes = sown.named(model)
    found = {"logits": model(images)}
    found |= {f"features/stages.{i}": map_ for i, map_ in enumerate(features)}
    for name, out in outputs.items():
        _, stage, _, block, _ = name.split(".")
        found[f"attention/stages.{stage}.{block}.attn"] = out
    for name, chosen in routes.items():
        _, stage, _, block, *_ = name.split(".")
        found[f"routes/stages.{stage}.{block}.attn.router"] = chosen
    return found


def _run(model: nnx.Module, size: str) -> dict[str, np.ndarray]:
    """What was recorded, of ours."""
    names: list[str] = []

    def outputs(x: jax.Array) -> list[Any]:
        found = _traced(model, x)
        names[:] = found
        return list(found.values())

    images = RECORDING.images(size)
    arrays, gradient = ours_and_gradient(outputs, images) if size == "even" else (jax.jit(outputs)(images), None)
    slope = {} if gradient is None else {"gradient": gradient}
    found = kept({**dict(zip(names, arrays, strict=True)), **slope}, recorded.KEPT)
    return {
        name: np.sort(array, -1).astype(np.uint8) if name.startswith("routes/") else array
        for name, array in found.items()
    }


@pytest.mark.full  # a published size, whose gradient takes long to compile: it is that of one size
@pytest.mark.parametrize("size", ["even", "odd"])
def test_matches_the_authors(model: nnx.Module, size: str, record_property: Any) -> None:
    found, expected = _run(model, size), RECORDING.arrays(size)
    routed = [name for name in expected if name.startswith("routes/")]
    assert len(routed) == sum(recorded.DEPTHS[:3])
    for name in routed:
        assert np.array_equal(found[name], expected[name]), name
    left = routed if size == "even" else [*routed, "gradient"]
    differences = {name: relative(found[name], array) for name, array in expected.items() if name not in left}
    about = {"architecture": "biformer_tiny", "reference": f"{RECORDING.named()} ({size} size)", "kind": "recorded"}
    record_property("parity", {**about, "mapped": len(WEIGHTS), "difference": max(differences.values())})
    assert max(differences.values()) < TOLERANCE, differences


def test_export_gives_the_same_bits(model: nnx.Module) -> None:
    assert same_bits(export(model, naming="biformer"), WEIGHTS)
