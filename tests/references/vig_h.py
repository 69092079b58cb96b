"""Records outputs of the authors' ViG-H: ``python -m tests.references.vig_h CLONE`` writes vig_h.npz beside it.

CLONE is a checkout of github.com/hustvl/ViG (MIT). Only numbers are kept. As :mod:`tests.references.vig`, with whose
stand-ins for kernels that need a GPU the authors' class runs; in evaluation its layers do not halve the sum of both
directions, as the kernel does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded
from tests.references.vig import authors

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, IMAGES = 42, 10, {"": (1, 70, 90, 3)}
KEPT = {"gradient": np.s_[:, ::3, 1::3]}
WIDTH, DEPTHS, HEADS = 16, (1, 2, 1, 1), (1, 2, 2, 4)
COUNTED: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "tiny": (96, 5, (3, 6, 12, 24)),
    "small": (96, 17, (3, 6, 12, 24)),
    "base": (128, 17, (4, 8, 16, 32)),
}
_NAMES = ("Linear2d", "LayerNorm2d", "Permute", "Mlp", "gMlp", "GLA2D", "VSSBlock", "HierViG")


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from collections import OrderedDict

    from tests.references.live import torch

    swiglu = lambda gate, y: torch.nn.functional.silu(gate) * y  # noqa: E731
    more = {"OrderedDict": OrderedDict, "swiglu": swiglu, "PatchMerging2D": None, "Callable": None}
    build = authors(clone, "vig_h", "HierViG", _NAMES, more, kernel_halves=True)
    options: dict[str, Any] = {"use_act_in_conv": False, "gmlp": True, "norm_layer": "ln2d"}
    options |= {"downsample_version": "v3", "patchembed_version": "v2"}
    counts = {
        name: recording.count(build(dims=width, depths=[2, 2, depth, 2], num_heads=list(heads), **options))
        for name, (width, depth, heads) in COUNTED.items()
    }
    model = build(dims=WIDTH, depths=list(DEPTHS), num_heads=list(HEADS), num_classes=CLASSES, **options)
    shapes = recording.give_weights(model, SEED)
    images = seeded.images(IMAGES[""], SEED)
    arrays = recording.outputs(model, [layer.blocks for layer in model.layers], images, KEPT, recording.channels_last)
    return arrays | recording.about("github.com/hustvl/ViG", clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
