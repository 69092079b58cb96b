"""T2T-ViT against recorded outputs of the authors' code: logits, features, gradients, other image sizes, names."""

from __future__ import annotations

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from layers.patch import soft_split
from layers.position import sinusoids
from tests.references import seeded
from tests.references import t2t_vit as recorded
from tests.references.live import ours_and_gradient, relative, same_bits
from tests.tiers import tiered
from zoo.registry import variant
from zoo.weights import export

pytestmark = pytest.mark.reference

ARRAYS = dict(np.load(recorded.PATH))
ABOUT = json.loads(str(ARRAYS.pop("about")))
TOLERANCE = 1e-5
SIDE, OTHER = recorded.IMAGES


def _model(tokens: str) -> tuple[Any, dict[str, np.ndarray]]:
    """Ours with the weights that were recorded, and their state dict, of the authors' fixed positions."""
    shapes = {name: tuple(shape) for name, shape in ABOUT["shapes"][tokens].items()}
    positions = sinusoids((SIDE // 16) ** 2 + 1, recorded.SIZE["embed_dim"])[None]
    state = {**seeded.weights(shapes, recorded.SEED), "pos_embed": positions}
    size = {"features": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "token_features": 8, "num_classes": 10}
    name = "t2t_vit_14" if tokens == "performer" else "t2t_vit_t_14"
    return zoo.create(name, weights=state, image_size=SIDE, **size), state


@pytest.mark.parametrize("tokens", tiered(recorded.TOKENS, lambda tokens: tokens == "performer"))
def test_matches_the_authors(tokens: str, record_property: Any) -> None:
    model, state = _model(tokens)
    differences = []
    for side in (SIDE, OTHER):

        def outputs(x: Any) -> list[Any]:
            tokens_ = model.patch_embed(x).reshape(1, -1, 32)
            return [model(x), tokens_, *[found.reshape(1, -1, 32) for found in model.features(x, range(2))]]

        found, gradient = ours_and_gradient(outputs, seeded.images((1, side, side, 3), recorded.SEED))
        last_row = np.concatenate([feature[:, -(side // 16) :] for feature in found[1:]])
        expected = {name: ARRAYS[f"{tokens}/{side}/{name}"] for name in ("logits", "gradient", "features", "pos_embed")}
        positions = sinusoids((side // 16) ** 2 + 1, 32)[None, :, :8]
        ours = {"logits": found[0], "features": last_row, "gradient": gradient[:, ::4, 1::4], "pos_embed": positions}
        differences += [relative(ours[name], expected[name]) for name in ours]
    about = {"reference": f"{ABOUT['repository']} {ABOUT['commit'][:8]}", "kind": "recorded", "mapped": len(state)}
    record_property("parity", {**about, "architecture": model.variant, "difference": max(differences)})
    assert max(differences) < TOLERANCE
    assert same_bits(export(model, naming="t2t"), state)


def test_sizes_are_those_of_the_authors() -> None:
    """The registry-driven tests compare ours with the declared counts."""
    assert {f"t2t_vit_{name}": count for name, (count, _) in ABOUT["counts"].items()} == {
        name: variant(name).parameters for name in zoo.list_models("t2t_vit_*") if variant(name).published
    }


def test_soft_split_takes_windows_channel_by_channel() -> None:
    x = np.arange(2 * 5 * 6 * 3, dtype=np.float32).reshape(2, 5, 6, 3)
    tokens = np.asarray(soft_split(jnp.asarray(x), 3, 2, 1))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    assert tokens.shape == (2, 3, 3, 27)
    assert np.array_equal(tokens[1, 2, 1], padded[1, 4:7, 2:5].transpose(2, 0, 1).reshape(-1))
    with pytest.raises(ValueError, match="2x2 is smaller than a window of 7x7"):
        soft_split(jnp.zeros((1, 2, 2, 3)), 7, 4, 2)
