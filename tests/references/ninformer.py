"""Records outputs of the authors' NiNformer: ``python -m tests.references.ninformer CLONE`` writes ninformer.npz beside
it.

CLONE is a checkout of github.com/Abdullah-88/NiNformer (BSD-3-Clause). Only numbers are kept. The model is the authors'
classifier, narrow and shallow, with weights and images from :mod:`tests.references.seeded`; the parameters of the one
that they train are counted as well. Its class stands in a script that trains it: only the class is run.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, IMAGES = 41, 10, {"": (2, 12, 12, 3)}
KEPT: dict[str, Any] = {}
SIZE: dict[str, Any] = {"d_model": 16, "d_ffn": 24, "seq_len": 9, "num_layers": 2, "image_size": 12}


def authors(clone: Path) -> Any:
    """Their class of classifiers."""
    from tests.references.live import torch

    found = {"nn": torch.nn, "NiNformer": recording.module_of(clone / "ninformer.py").NiNformer}
    tree = ast.parse((clone / "train.py").read_text())
    names = ("check_sizes", "NiNformerImageClassification")
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    exec(compile(tree, "train.py", "exec"), found)
    return found["NiNformerImageClassification"]


def published(clone: Path, name: str) -> Any:
    """The authors' model, which they train on CIFAR and ours is ``ninformer_cifar``."""
    del name
    return authors(clone)()


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    build = authors(clone)
    counts = {"cifar": recording.count(published(clone, "ninformer_cifar"))}
    model = build(num_classes=CLASSES, **SIZE)
    shapes = recording.give_weights(model, SEED)
    arrays = recording.outputs(model, model.model, seeded.images(IMAGES[""], SEED), KEPT)
    return arrays | recording.about("github.com/Abdullah-88/NiNformer", clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
