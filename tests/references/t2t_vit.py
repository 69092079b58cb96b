"""Records outputs of the authors' T2T-ViT: ``python -m tests.references.t2t_vit CLONE`` writes t2t_vit.npz beside it.

CLONE is a checkout of github.com/yitu-opensource/T2T-ViT (Clear BSD). Only numbers are kept. The models are the
authors' class, narrow and shallow, with weights and images from :mod:`tests.references.seeded` and their own table of
positions; the published models' parameter counts are recorded as well.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES = 11, 10
KEPT = {"gradient": np.s_[:, ::4, 1::4]}
SIZE: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "token_dim": 8}
SIDES = (64, 96)
TOKENS = ("performer", "transformer")
IMAGES = {f"{tokens}/{side}": (1, side, side, 3) for tokens in TOKENS for side in SIDES}
COUNTED = ("7", "10", "12", "14", "19", "24", "t_14", "t_19", "t_24", "14_resnext", "14_wide")


def authors(clone: Path) -> Any:
    """Their module models/t2t_vit.py, without the rest of their package."""
    recording.stand_in_timm()
    sys.path.insert(0, str(clone))
    package = types.ModuleType("models")
    package.__path__ = [str(clone / "models")]
    sys.modules["models"] = package
    return importlib.import_module("models.t2t_vit")


def published(clone: Path, name: str) -> Any:
    """The authors' published model that ours of this name is."""
    return getattr(authors(clone), name)()


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    module = authors(clone)
    arrays: dict[str, np.ndarray] = {}
    shapes: dict[str, Any] = {}
    for case, images in IMAGES.items():
        tokens, side = case.split("/")[0], images[1]
        model = module.T2T_ViT(img_size=side, tokens_type=tokens, num_classes=CLASSES, **SIZE)
        shapes[tokens] = recording.give_weights(model, SEED, leave=["pos_embed"])
        parts = (model.tokens_to_token, *model.blocks)
        found = recording.outputs(model, parts, seeded.images(images, SEED), KEPT)
        last_row = [found.pop(f"features/{i}")[:, -(side // 16) :] for i in range(len(parts))]
        found |= {"features": np.concatenate(last_row), "pos_embed": model.pos_embed.numpy()[:, :, :8]}
        arrays |= recording.under(case, found)
    models = {name: published(clone, f"t2t_vit_{name}") for name in COUNTED}
    counts = {name: [_count(model, trained) for trained in (True, False)] for name, model in models.items()}
    repository = "github.com/yitu-opensource/T2T-ViT"
    return arrays | recording.about(repository, clone, counts=counts, shapes=shapes)


def _count(model: Any, trained: bool) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or not trained)


if __name__ == "__main__":
    recording.write(PATH, record)
