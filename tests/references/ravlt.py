"""Records outputs of the authors' RAVLT: ``python -m tests.references.ravlt CLONE`` writes ravlt.npz beside it.

CLONE is a checkout of github.com/qhfan/RALA (no license: run only). Only numbers are kept. The model is the authors'
class of image classification, narrow and shallow, with weights and images from :mod:`tests.references.seeded`; the
published models' parameter counts are recorded as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded
from tests.references.rmt import COUNTERS

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, IMAGES = 21, 10, {"": (1, 48, 80, 3)}
KEPT = {"gradient": np.s_[:, ::2, 1::2]}
# A stage of linear attention, and one of attention by softmax.
SIZE: dict[str, Any] = {"depths": (1, 1), "num_heads": (2, 3), "mlp_ratios": (3, 2)}
WIDTHS, LINEAR, PROJECTION = (16, 24), (True, False), 40
COUNTED = {"tiny": "RAVLT_T", "small": "RAVLT_S", "base": "RAVLT_B", "large": "RAVLT_L"}


def authors(clone: Path) -> Any:
    """Their module of image classification."""
    recording.stand_in_timm()
    recording.stand_in(COUNTERS)
    return recording.module_of(next(clone.glob("class*/RALA.py")))


def published(clone: Path, name: str) -> Any:
    """The authors' published model that ours of this name is."""
    return getattr(authors(clone), COUNTED[name.removeprefix("ravlt_")])()


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    module = authors(clone)
    counts = {name: recording.count(published(clone, f"ravlt_{name}")) for name in COUNTED}
    kinds = [["l" if linear else "v"] for linear in LINEAR]
    options: dict[str, Any] = {"embed_dims": WIDTHS, "flagss": kinds, "projection": PROJECTION, **SIZE}
    scales = {"layerscales": [True] * 2, "layer_init_values": [1.0] * 2}
    model = module.RAVLT(num_classes=CLASSES, **options, **scales)
    buffers = {name: value.numpy().copy() for name, value in model.named_buffers() if ".RoPE." in name}
    shapes = recording.give_weights(model, SEED, leave=[".RoPE."])
    blocks = [stage.blocks[-1] for stage in model.layers]
    arrays = recording.outputs(model, blocks, seeded.images(IMAGES[""], SEED), KEPT, recording.channels_last)
    return arrays | buffers | recording.about("github.com/qhfan/RALA", clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
