"""Records outputs of the authors' PVT: ``python -m tests.references.pvt_v1 CLONE`` writes pvt_v1.npz beside it.

CLONE is a checkout of github.com/whai362/PVT (Apache 2.0), branch v2. Only numbers are kept. The model is the authors'
class, narrow and shallow, with weights and images from :mod:`tests.references.seeded`; the published models' parameter
counts are recorded as well.
"""

from __future__ import annotations

import importlib.util
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
SEED, CLASSES, IMAGES = 13, 10, (64, 96)
WIDTHS, HEADS, RATIOS = (8, 16, 24, 32), (1, 2, 3, 4), (4, 4, 2, 2)
COUNTED = ("tiny", "small", "medium", "large")


def authors(clone: Path) -> Any:
    """Their module classification/pvt.py."""
    from tests.references.live import timm

    # What it imports from the timm of its time.
    wanted: dict[str, dict[str, Any]] = {
        "layers": {name: getattr(timm.layers, name) for name in ("DropPath", "to_2tuple", "trunc_normal_")},
        "registry": {"register_model": lambda function: function},
    }
    for name, parts in wanted.items():
        stub = sys.modules[f"timm.models.{name}"] = types.ModuleType(name)
        vars(stub).update(parts)
    spec: Any = importlib.util.spec_from_file_location("authors_pvt", clone / "classification" / "pvt.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import outputs_and_gradient, torch

    module = authors(clone)
    models = {name: getattr(module, f"pvt_{name}")() for name in COUNTED}
    counts = {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()}
    options: dict[str, Any] = {"embed_dims": WIDTHS, "num_heads": HEADS, "mlp_ratios": RATIOS, "depths": (1, 1, 1, 2)}
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    model = module.PyramidVisionTransformer(
        IMAGES[0], 4, num_classes=CLASSES, qkv_bias=True, norm_layer=norm, **options
    )
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(array) for name, array in seeded.weights(shapes, SEED).items()})
    model.eval()
    features: list[Any] = []
    for stage in range(4):
        last = getattr(model, f"block{stage + 1}")[-1]
        last.register_forward_hook(lambda _, __, out: features.append(out.detach().numpy()))
    arrays: dict[str, np.ndarray] = {}
    for side in IMAGES:
        features.clear()
        found, gradient = outputs_and_gradient(lambda x: [model(x)], seeded.images((1, side, side, 3), SEED))
        arrays[f"{side}/logits"], arrays[f"{side}/gradient"] = found[0], gradient[:, ::4, 1::4]
        arrays |= {f"{side}/features/{stage}": feature[:, -4:] for stage, feature in enumerate(features)}
    git = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    about = {"repository": "github.com/whai362/PVT", "commit": commit, "torch": torch.__version__}
    return {**arrays, "about": np.array(json.dumps({**about, "counts": counts, "shapes": shapes}))}


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))  # type: ignore[arg-type]
    print(f"{PATH}: {PATH.stat().st_size} bytes")
