"""Records outputs of the authors' RMT: ``python -m tests.references.rmt CLONE`` writes rmt.npz beside it.

CLONE is a checkout of github.com/qhfan/RMT (no license: run only). Only numbers are kept. The model is the authors'
class of image classification, narrow and shallow, with weights and images from :mod:`tests.references.seeded`; the
published models' parameter counts are recorded as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, IMAGES = 16, 10, {"": (1, 48, 80, 3)}
KEPT = {"gradient": np.s_[:, ::2, 1::2]}
# Stages with and without the whole form and layer scale.
SIZE: dict[str, Any] = {"depths": (1, 1), "num_heads": (2, 3), "mlp_ratios": (3, 2)}
WIDTHS, RANGES, WHOLE, SCALED = (16, 24), (4, 6), (False, True), (False, True)
PROJECTION = 40
COUNTED = {"tiny": "RMT_T3", "small": "RMT_S", "base": "RMT_M2", "large": "RMT_L6"}


# What their files import to count operations.
COUNTERS = {"fvcore": {}, "fvcore.nn": dict.fromkeys(("FlopCountAnalysis", "flop_count_table"))}


def authors(clone: Path) -> Any:
    """Their module of image classification."""
    recording.stand_in_timm()
    recording.stand_in(COUNTERS)
    return recording.module_of(clone / "classfication_release" / "RMT.py")


def published(clone: Path, name: str) -> Any:
    """The authors' published model that ours of this name is."""
    return getattr(authors(clone), COUNTED[name.removeprefix("rmt_")])(None)


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    module = authors(clone)
    counts = {name: recording.count(published(clone, f"rmt_{name}")) for name in COUNTED}
    options: dict[str, Any] = {"embed_dims": WIDTHS, "heads_ranges": RANGES, "init_values": (2, 2), **SIZE}
    kinds = {
        "chunkwise_recurrents": [not whole for whole in WHOLE],
        "layerscales": SCALED,
        "use_checkpoints": [False] * 2,
    }
    model = module.VisRetNet(num_classes=CLASSES, projection=PROJECTION, **kinds, **options)
    buffers = {name: value.numpy().copy() for name, value in model.named_buffers() if ".Relpos." in name}
    shapes = recording.give_weights(model, SEED, leave=[".Relpos."])
    blocks = [stage.blocks[-1] for stage in model.layers]
    arrays = recording.outputs(model, blocks, seeded.images(IMAGES[""], SEED), KEPT)
    return arrays | buffers | recording.about("github.com/qhfan/RMT", clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
