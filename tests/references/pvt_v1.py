"""Records outputs of the authors' PVT: ``python -m tests.references.pvt_v1 CLONE`` writes pvt_v1.npz beside it.

CLONE is a checkout of github.com/whai362/PVT (Apache 2.0), branch v2. Only numbers are kept. The model is the authors'
class, narrow and shallow, with weights and images from :mod:`tests.references.seeded`; the published models' parameter
counts are recorded as well.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, SIDE, IMAGES = 13, 10, 64, {"64": (1, 64, 64, 3), "96": (1, 96, 96, 3)}
KEPT = {"gradient": np.s_[:, ::4, 1::4], "features": np.s_[:, -4:]}
WIDTHS, HEADS, RATIOS = (8, 16, 24, 32), (1, 2, 3, 4), (4, 4, 2, 2)
COUNTED = ("tiny", "small", "medium", "large")


def authors(clone: Path) -> Any:
    """Their module of image classification."""
    recording.stand_in_timm()
    return recording.module_of(clone / "classification" / "pvt.py")


def published(clone: Path, name: str) -> Any:
    """The authors' published model that ours of this name is."""
    return getattr(authors(clone), name)()


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import torch

    module = authors(clone)
    counts = {name: recording.count(published(clone, f"pvt_{name}")) for name in COUNTED}
    options: dict[str, Any] = {"embed_dims": WIDTHS, "num_heads": HEADS, "mlp_ratios": RATIOS, "depths": (1, 1, 1, 2)}
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    model = module.PyramidVisionTransformer(SIDE, 4, num_classes=CLASSES, qkv_bias=True, norm_layer=norm, **options)
    shapes = recording.give_weights(model, SEED)
    last = [getattr(model, f"block{stage + 1}")[-1] for stage in range(4)]
    arrays: dict[str, np.ndarray] = {}
    for case, shape in IMAGES.items():
        arrays |= recording.under(case, recording.outputs(model, last, seeded.images(shape, SEED), KEPT))
    return arrays | recording.about("github.com/whai362/PVT", clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
