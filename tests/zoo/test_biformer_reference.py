"""BiFormer against recorded outputs of the authors' code: logits, features, attention, routed regions, gradients,
names, sizes.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import Diagnostic, collecting, parameter_count
from layers.mixer import Mixer
from tests.references import biformer as recorded
from tests.references import seeded
from tests.tiers import tiered
from zoo.registry import abstract, variant
from zoo.weights import export

TOLERANCE = 5e-6
ARRAYS = dict(np.load(recorded.PATH))
ABOUT = json.loads(str(ARRAYS["about"]))
SHAPES = {name: tuple(shape) for name, shape in ABOUT["shapes"].items()}


def _relative(ours: Any, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs)))


@pytest.fixture(scope="module")
def model() -> nnx.Module:
    size = {
        "features": recorded.FEATURES,
        "stem": (4, 8),
        "depths": recorded.DEPTHS,
        "num_heads": (1, 2, 4, 8),
        "num_classes": recorded.CLASSES,
    }
    made = zoo.create(
        "biformer_tiny", weights=seeded.weights(SHAPES, recorded.SEED, sharpness=recorded.SHARPNESS), **size
    )
    made.eval()
    return made


def _run(model: nnx.Module, size: str) -> dict[str, np.ndarray]:
    """Logits, features and the input's gradient, and the outputs of every mixer with the regions it chose."""
    images = seeded.images(recorded.SIZES[size], recorded.SEED)
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
        for kind in original:
            patch.setattr(kind, "__call__", spied(kind))
        features = model.features(images)
        routes = sown.named(model)
    gradient = jax.jit(jax.grad(lambda x: jax.numpy.sin(model(x)).sum()))(images)
    found = {"logits": model(images), "gradient": gradient[:, ::4, 1::4]}
    found |= {f"features/stages.{i}": map_ for i, map_ in enumerate(features)}
    for name, out in outputs.items():
        _, stage, _, block, _ = name.split(".")
        found[f"attention/stages.{stage}.{block}.attn"] = out
    for name, chosen in routes.items():
        _, stage, _, block, *_ = name.split(".")
        found[f"routes/stages.{stage}.{block}.attn.router"] = np.sort(chosen, -1).astype(np.uint8)
    return found


@pytest.mark.full  # a published size, whose gradient takes long to compile
@pytest.mark.parametrize("size", ["even", "odd"])
def test_matches_the_authors(model: nnx.Module, size: str, record_property: Any) -> None:
    found = _run(model, size)
    expected = {name.removeprefix(f"{size}/"): array for name, array in ARRAYS.items() if name.startswith(f"{size}/")}
    routed = [name for name in expected if name.startswith("routes/")]
    assert len(routed) == sum(recorded.DEPTHS[:3])
    for name in routed:
        assert np.array_equal(found[name], expected[name]), name
    differences = {name: _relative(found[name], array) for name, array in expected.items() if name not in routed}
    about = {"architecture": "biformer_tiny", "reference": f"{ABOUT['repository']} {ABOUT['commit'][:8]} ({size} size)"}
    record_property(
        "parity", {**about, "kind": "recorded", "mapped": len(SHAPES), "difference": max(differences.values())}
    )
    assert max(differences.values()) < TOLERANCE, differences


def test_export_gives_the_same_bits(model: nnx.Module) -> None:
    state, found = seeded.weights(SHAPES, recorded.SEED, sharpness=recorded.SHARPNESS), export(model, naming="biformer")
    assert set(found) == set(state)
    for name, array in state.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize(
    "name", tiered(["biformer_tiny", "biformer_small", "biformer_base"], lambda name: name == "biformer_tiny")
)
def test_parameter_counts(name: str) -> None:
    entry = variant(name)
    assert parameter_count(abstract(entry, entry.config)) == ABOUT["counts"][name]
