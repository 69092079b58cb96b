"""Records outputs of a port of DependencyViT: ``python -m tests.references.dependencyvit CLONE`` writes
dependencyvit.npz beside it.

CLONE is a checkout of github.com/huggingface/pytorch-image-models (Apache 2.0) at commit f32418ce, whose
timm/models/dependencyvit.py, by F. Guan, was not merged. Only numbers are kept. It runs beside the timm that is
installed, narrow and shallow, with weights and images from :mod:`tests.references.seeded`, with all tokens and with
fewer after two of three blocks. The tokens that it drops after a block's attention, ours drop after its MLP, which is
the same.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, SIDE = 45, 10, 24
CASES: dict[str, tuple[int, ...]] = {"whole": (), "lite": (1, 2)}
IMAGES = dict.fromkeys(CASES, (2, SIDE, SIDE, 3))
KEPT: dict[str, Any] = {}
SIZE: dict[str, Any] = {"embed_dim": 24, "depth": 3, "num_heads": 3, "mlp_ratio": 2.0, "patch_size": 4}


def authors(clone: Path) -> Any:
    """The port's class."""
    from tests.references.live import timm

    name = "timm.models.dependencyvit"
    assert timm.models
    spec: Any = importlib.util.spec_from_file_location(name, clone / "timm/models/dependencyvit.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    block = module.DependencyViTBlock
    taken = set(inspect.signature(block.__init__).parameters)
    # Of the options of timm's blocks, there are more by now.
    module.DependencyViTBlock = lambda **given: block(**{key: given[key] for key in given if key in taken})

    class DependencyViT(module.DependencyViT):  # type: ignore[name-defined,misc]
        """Called as models of that time were."""

        def forward(self, x: Any) -> Any:
            return self.forward_head(self.forward_features(x))

    return DependencyViT


def published(clone: Path, name: str) -> Any:
    """The port at the published size that ours of this name has."""
    size = name.removeprefix("dependencyvit_").removesuffix("_patch16_224")
    lite, features = size.startswith("lite_"), 192 if size.endswith("tiny") else 384
    layers = [2, 5, 8, 11] if lite else None
    return authors(clone)(embed_dim=features, depth=12, num_heads=12, prune_layers=layers, prune_ratio=0.16)


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    build = authors(clone)
    names = ("tiny", "small", "lite_tiny")
    counts = {name: recording.count(published(clone, f"dependencyvit_{name}_patch16_224")) for name in names}
    arrays: dict[str, np.ndarray] = {}
    for case, layers in CASES.items():
        pruning = {"prune_layers": layers, "prune_ratio": 0.16} if layers else {}
        model = build(img_size=SIDE, num_classes=CLASSES, **pruning, **SIZE)
        shapes = recording.give_weights(model, SEED, sharpness=3.0)
        parts = [] if layers else list(model.blocks)
        features = lambda out: out[0].detach().numpy()  # noqa: E731
        found = recording.outputs(model, parts, seeded.images(IMAGES[case], SEED), KEPT, features)
        arrays |= recording.under(case, found)
    repository = "github.com/huggingface/pytorch-image-models"
    return arrays | recording.about(repository, clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
