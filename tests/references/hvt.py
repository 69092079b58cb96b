"""Records outputs of the authors' HVT: ``python -m tests.references.hvt CLONE`` writes hvt.npz beside it.

CLONE is a checkout of github.com/zhuang-group/HVT (Apache 2.0). Only numbers are kept. The model is the authors' class,
narrow and shallow, with weights and images from :mod:`tests.references.seeded`; the published models' parameter counts
are recorded as well.
"""

from __future__ import annotations

import importlib
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, IMAGES = 12, 10, {"": (2, 80, 80, 3)}
KEPT = {"gradient": np.s_[:, ::4, 1::4]}
SIZE: dict[str, Any] = {"embed_dim": 32, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0, "patch_size": 16}
POOL_EVERY = 2
# Heads of 64 features, and blocks from one pooling to the next.
COUNTED = {"tiny_1": (3, 12), "small_1": (6, 12), "small_2": (6, 6), "small_3": (6, 4), "small_4": (6, 3)}


def authors(clone: Path) -> Any:
    """Their module models.py, and the options that it reads from a command line."""
    recording.stand_in_timm()
    sys.path.insert(0, str(clone))
    params: Any = types.ModuleType("params")
    params.args = types.SimpleNamespace(pool_kernel_size=3, pool_stride=2, pool_block_width=12)
    sys.modules["params"] = params
    module = importlib.import_module("models")
    return module, module.args


def published(clone: Path, name: str) -> Any:
    """The authors' published model that ours of this name is."""
    from tests.references.live import torch

    module, options = authors(clone)
    heads, options.pool_block_width = COUNTED[name.removeprefix("hvt_")]
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    return module.HVT(qkv_bias=True, norm_layer=norm, embed_dim=64 * heads, num_heads=heads)


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import torch

    module, options = authors(clone)
    build = partial(module.HVT, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6))
    counts = {name: recording.count(published(clone, f"hvt_{name}")) for name in COUNTED}
    options.pool_block_width = POOL_EVERY
    model = build(img_size=IMAGES[""][1], num_classes=CLASSES, **SIZE)
    shapes = recording.give_weights(model, SEED)
    arrays = recording.outputs(model, model.blocks, seeded.images(IMAGES[""], SEED), KEPT)
    return arrays | recording.about("github.com/zhuang-group/HVT", clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
