"""Records outputs of the authors' L2ViT: ``python -m tests.references.l2vit CLONE`` writes l2vit.npz beside it.

CLONE is a checkout of github.com/ChuanyangZheng/L2ViT (MIT). Only numbers are kept. The model is the authors' class,
narrow and shallow, with weights and images from :mod:`tests.references.seeded`; the published models' parameter counts
are recorded as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, IMAGES = 23, 10, {"": (2, 60, 76, 3)}
KEPT = {"gradient": np.s_[:, ::2, 1::2]}
# Four stages, as their class has it, of which one has both kinds of blocks.
WIDTHS, DEPTHS, HEADS, RATIO, WINDOW = (16, 24, 32, 32), (2, 1, 1, 1), (2, 2, 2, 2), 2.0, 4
COUNTED = {"tiny": "Tiny", "small": "Small", "base": "Base", "base_384": "Base_384"}


def authors(clone: Path) -> Any:
    """Their module of image classification."""
    recording.stand_in_timm()
    return recording.module_of(clone / "classification" / "models" / "l2vit.py")


def published(clone: Path, name: str) -> Any:
    """The authors' published model that ours of this name is."""
    return getattr(authors(clone), f"L2ViT_{COUNTED[name.removeprefix('l2vit_')]}")()


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    module = authors(clone)
    counts = {name: recording.count(published(clone, f"l2vit_{name}")) for name in COUNTED}
    options: dict[str, Any] = {"dims": WIDTHS, "depths": DEPTHS, "num_heads": HEADS, "window_size": WINDOW}
    kinds: dict[str, Any] = {"block_type": "mix_local_enhanced_vit", "conv_stem": True, "mlp_ratio": [RATIO] * 4}
    model = module.L2ViT(num_classes=CLASSES, **kinds, **options)
    shapes = recording.give_weights(model, SEED)
    images = seeded.images(IMAGES[""], SEED)
    arrays = recording.outputs(model, model.stages, images, KEPT, features=lambda out: out[0].detach().numpy())
    return arrays | recording.about("github.com/ChuanyangZheng/L2ViT", clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
