"""Records outputs of the authors' ECA-Net: ``python -m tests.references.eca CLONE`` writes eca.npz beside it.

CLONE is a checkout of github.com/BangguWu/ECANet (MIT). Only numbers are kept. The model is the authors' ResNet of
basic blocks, one in each stage, with weights and images from :mod:`tests.references.seeded`; the published models'
parameter counts are recorded as well.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, IMAGES, KERNELS = 19, 10, {"": (1, 45, 70, 3)}, (3, 5, 7, 7)
KEPT = {"gradient": np.s_[:, ::2, 1::2], "features": np.s_[:, ::2, ::2, ::4]}
COUNTED = {"18": "3577", "34": "3357", "50": "3557", "101": "3357", "152": "3357"}


def authors(clone: Path) -> Any:
    """Their module models/eca_resnet.py."""
    sys.path.insert(0, str(clone))
    return importlib.import_module("models.eca_resnet")


def published(clone: Path, name: str) -> Any:
    """The authors' published model that ours of this name is."""
    size, _, kernels = name.rpartition("_k")
    return getattr(authors(clone), size)(k_size=[int(k) for k in kernels])


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import torch

    module = authors(clone)
    names = [f"eca_resnet{size}_k{kernels}" for size, kernels in COUNTED.items()]
    counts = {name: recording.count(published(clone, name)) for name in names}
    model = module.ResNet(module.ECABasicBlock, [1, 1, 1, 1], num_classes=CLASSES, k_size=list(KERNELS))
    model.avgpool = torch.nn.AdaptiveAvgPool2d(1)  # theirs is for 224 pixels
    shapes = recording.give_weights(model, SEED)
    stages = [getattr(model, f"layer{stage + 1}") for stage in range(4)]
    images = seeded.images(IMAGES[""], SEED)
    arrays = recording.outputs(model, stages, images, KEPT, recording.channels_last)
    return arrays | recording.about("github.com/BangguWu/ECANet", clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
