"""Records outputs of the authors' HVT: ``python -m tests.references.hvt CLONE`` writes hvt.npz beside it.

CLONE is a checkout of github.com/zhuang-group/HVT (Apache 2.0). Only numbers are kept. The model is the authors' class,
narrow and shallow, with weights and images from :mod:`tests.references.seeded`; the published models' parameter counts
are recorded as well.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, SIDE, CLASSES = 12, 80, 10
SIZE: dict[str, Any] = {"embed_dim": 32, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0, "patch_size": 16}
POOL_EVERY = 2
# Heads of 64 features, and blocks from one pooling to the next.
COUNTED = {"tiny_1": (3, 12), "small_1": (6, 12), "small_2": (6, 6), "small_3": (6, 4), "small_4": (6, 3)}


def authors(clone: Path) -> Any:
    """Their module models.py, which reads its options from a command line."""
    from tests.references.live import timm

    sys.path.insert(0, str(clone))
    params: Any = types.ModuleType("params")
    params.args = types.SimpleNamespace(pool_kernel_size=3, pool_stride=2, pool_block_width=12)
    sys.modules["params"] = params
    # What they import from the timm of their time.
    wanted: dict[str, Any] = {
        "layers": {name: getattr(timm.layers, name) for name in ("DropPath", "to_2tuple", "trunc_normal_")},
        "registry": {"register_model": lambda function: function},
    }
    for name, parts in wanted.items():
        stub = sys.modules[f"timm.models.{name}"] = types.ModuleType(name)
        vars(stub).update(parts)
    return importlib.import_module("models"), params.args


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import outputs_and_gradient, torch

    module, options = authors(clone)
    build = partial(module.HVT, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6))
    counts = {}
    for name, (heads, width) in COUNTED.items():
        options.pool_block_width = width
        model = build(embed_dim=64 * heads, num_heads=heads)
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
    options.pool_block_width = POOL_EVERY
    model = build(img_size=SIDE, num_classes=CLASSES, **SIZE)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(array) for name, array in seeded.weights(shapes, SEED).items()})
    model.eval()
    features: list[Any] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: features.append(out.detach().numpy()))
    found, gradient = outputs_and_gradient(lambda x: [model(x)], seeded.images((2, SIDE, SIDE, 3), SEED))
    arrays = {"logits": found[0], "gradient": gradient[:, ::4, 1::4]}
    arrays |= {f"features/{i}": feature for i, feature in enumerate(features)}
    git = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    about = {"repository": "github.com/zhuang-group/HVT", "commit": commit, "torch": torch.__version__}
    return {**arrays, "about": np.array(json.dumps({**about, "counts": counts, "shapes": shapes}))}


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))  # type: ignore[arg-type]
    print(f"{PATH}: {PATH.stat().st_size} bytes")
