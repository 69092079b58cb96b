"""Records outputs of the authors' CSWin: ``python -m tests.references.cswin CLONE`` writes cswin.npz beside it.

CLONE is a checkout of github.com/microsoft/CSWin-Transformer (MIT). Only numbers are kept. The model is the authors'
class, narrow and shallow, with weights and images from :mod:`tests.references.seeded`; the published models' parameter
counts are recorded as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, SIDE, IMAGES = 20, 10, 128, {"": (1, 128, 128, 3)}
KEPT = {"gradient": np.s_[:, ::4, 1::4], "features": np.s_[:, ::5]}
WIDTH, DEPTHS, HEADS, STRIPES, RATIO = 16, (1, 1, 1, 1), (2, 2, 4, 4), (2, 4, 8, 8), 2.0
COUNTED = {
    "tiny_224": "CSWin_64_12211_tiny_224",
    "small_224": "CSWin_64_24322_small_224",
    "base_224": "CSWin_96_24322_base_224",
    "base_384": "CSWin_96_24322_base_384",
    "large_224": "CSWin_144_24322_large_224",
    "large_384": "CSWin_144_24322_large_384",
}


def authors(clone: Path) -> Any:
    """Their module models/cswin.py."""
    recording.stand_in_timm()
    return recording.module_of(clone / "models" / "cswin.py")


def published(clone: Path, name: str) -> Any:
    """The authors' published model that ours of this name is."""
    build = getattr(authors(clone), COUNTED[name.removeprefix("cswin_")])
    return build(img_size=int(name.rpartition("_")[2]))


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    module = authors(clone)
    counts = {f"cswin_{name}": recording.count(published(clone, f"cswin_{name}")) for name in COUNTED}
    options: dict[str, Any] = {"depth": list(DEPTHS), "num_heads": list(HEADS), "split_size": list(STRIPES)}
    model = module.CSWinTransformer(SIDE, 4, num_classes=CLASSES, embed_dim=WIDTH, mlp_ratio=RATIO, **options)
    shapes = recording.give_weights(model, SEED)
    last = [getattr(model, f"stage{stage + 1}")[-1] for stage in range(4)]
    arrays = recording.outputs(model, last, seeded.images(IMAGES[""], SEED), KEPT)
    return arrays | recording.about("github.com/microsoft/CSWin-Transformer", clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
