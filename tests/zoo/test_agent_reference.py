"""Agent Attention and InLine attention in DeiT and Swin against recorded outputs of the authors' models: logits,
gradients, names.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import zoo
from tests.references import cores as recorded
from tests.references import seeded
from tests.references.live import ours_and_gradient, relative, same_bits
from zoo.vision.agent import in_stages
from zoo.weights import export

pytestmark = pytest.mark.reference

ARRAYS = dict(np.load(recorded.PATH))
ABOUT = json.loads(str(ARRAYS.pop("about")))
TOLERANCE = 1e-5
AGENT: dict[str, Any] = {"name": "agent", "agents": recorded.AGENTS}
WIDTH = recorded.FEATURES


def _options(name: str) -> tuple[str, dict[str, Any]]:
    """Our model, and its narrow and shallow form that was recorded."""
    kind, host = name.split("/")
    mixer = AGENT if kind == "agent" else {"name": "inline"}
    if host == "deit":
        size = {"image_size": 64, "patch_size": 8, "features": WIDTH, "depth": 2, "num_heads": recorded.HEADS}
        return f"{kind}_deit_tiny_patch16_224", size | (
            {"pattern": {0: {**mixer, "prefix": 1}}} if kind == "agent" else {}
        )
    size = {
        "image_size": 112,
        "features": (WIDTH, 2 * WIDTH),
        "depths": (1, 2),
        "num_heads": (recorded.HEADS, 2 * recorded.HEADS),
    }
    return f"{kind}_swin_tiny_224", size | {"pattern": in_stages("A", lambda _: mixer) | {"1.0": mixer}}


@pytest.mark.parametrize("name", list(recorded.MODELS))
def test_matches_the_authors(name: str, record_property: Any) -> None:
    state = seeded.weights({n: tuple(shape) for n, shape in ABOUT["shapes"][name].items()}, recorded.SEED)
    variant, options = _options(name)
    model = zoo.create(variant, weights=state, num_classes=10, **options)
    (logits,), gradient = ours_and_gradient(lambda x: [model(x)], recorded.pixels(name))
    differences = [
        relative(logits, ARRAYS[f"{name}/out"]),
        relative(gradient[:, ::4, 1::4], ARRAYS[f"{name}/gradient"]),
    ]
    about = {"reference": ABOUT[recorded.MODELS[name][0]], "kind": "recorded", "mapped": len(state)}
    record_property("parity", {**about, "architecture": variant, "difference": max(differences)})
    assert max(differences) < TOLERANCE
    written = export(model, naming="authors")
    # Of the constants only those of blocks with windows are there.
    constants = {n for n in written.keys() - state.keys() if n.endswith(("relative_position_index", "attn_mask"))}
    assert constants == (
        {f"layers.1.blocks.1.{n}" for n in ("attn.relative_position_index", "attn_mask")} if "swin" in name else set()
    )
    assert same_bits({n: array for n, array in written.items() if n not in constants}, state)
