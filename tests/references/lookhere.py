"""Records outputs of the authors' LookHere: ``python -m tests.references.lookhere CLONE`` writes lookhere.npz beside
it.

CLONE is a checkout of github.com/GreenCUBIC/lookhere (MIT). Only numbers are kept. The model is the authors' class,
narrow and shallow, with weights and images from :mod:`tests.references.seeded`, its penalties in bfloat16 as they have
them; the parameter count of the published size is recorded as well.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, PATCH, IMAGES = 18, 10, 8, {"": (1, 48, 80, 3)}
KEPT = {"gradient": np.s_[:, ::2, 1::2]}
SIZE: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 6, "mlp_ratio": 2.0}
FIELDS, SLOPE, SLOPES = ("eighths1", "none"), 0.7, (1.5, 0.4)


def authors(clone: Path) -> Any:
    """Their class of models."""
    importlib.import_module("tests.references.live")  # torchvision, which they import, may be of another PyTorch
    sys.path.insert(0, str(clone))
    return importlib.import_module("lookhere").LookHere


def published(clone: Path, name: str) -> Any:
    """The authors' model with the fields and slopes of ours of this name."""
    from zoo.registry import variant

    ours: Any = variant(name).config
    fields = {"head_directions": "-".join(ours.fields), "layer_slopes": list(ours.layer_slopes)}
    return authors(clone)("cpu", fields | {"global_slope": ours.slope})


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    build = authors(clone)
    config = {"head_directions": "-".join(FIELDS), "layer_slopes": list(SLOPES), "global_slope": SLOPE}
    count = recording.count(build("cpu", dict(config)))
    size = IMAGES[""][1:3]
    model = build("cpu", config, img_size=size, patch_size=PATCH, num_classes=CLASSES, **SIZE)
    shapes = recording.give_weights(model, SEED)
    arrays = recording.outputs(model, model.blocks, seeded.images(IMAGES[""], SEED), KEPT)
    return arrays | recording.about("github.com/GreenCUBIC/lookhere", clone, count=count, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
