"""Records outputs of the authors' RMT: ``python -m tests.references.rmt CLONE`` writes rmt.npz beside it.

CLONE is a checkout of github.com/qhfan/RMT (no license: run only). Only numbers are kept. The model is the authors'
class of image classification, narrow and shallow, with weights and images from :mod:`tests.references.seeded`; the
published models' parameter counts are recorded as well. A package that their file imports and does not call is left
out.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, PIXELS = 16, 10, (1, 48, 80, 3)
# Stages with and without the whole form and layer scale.
SIZE: dict[str, Any] = {"depths": (1, 1), "num_heads": (2, 3), "mlp_ratios": (3, 2)}
WIDTHS, RANGES, WHOLE, SCALED = (16, 24), (4, 6), (False, True), (False, True)
PROJECTION = 40
COUNTED = {"tiny": "RMT_T3", "small": "RMT_S", "base": "RMT_M2", "large": "RMT_L6"}


def authors(clone: Path) -> Any:
    """Their module classfication_release/RMT.py."""
    from tests.references.live import timm

    # What it imports from the timm of its time, and to count operations.
    wanted: dict[str, dict[str, Any]] = {
        "timm.models.layers": {name: getattr(timm.layers, name) for name in ("DropPath", "to_2tuple", "trunc_normal_")},
        "timm.models.registry": {"register_model": lambda function: function},
        "fvcore": {},
        "fvcore.nn": dict.fromkeys(("FlopCountAnalysis", "flop_count_table")),
    }
    for name, parts in wanted.items():
        stub = sys.modules[name] = types.ModuleType(name)
        vars(stub).update(parts)
    spec: Any = importlib.util.spec_from_file_location("authors_rmt", clone / "classfication_release" / "RMT.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import outputs_and_gradient, torch

    module = authors(clone)
    models = {name: getattr(module, theirs)(None) for name, theirs in COUNTED.items()}
    counts = {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()}
    options: dict[str, Any] = {"embed_dims": WIDTHS, "heads_ranges": RANGES, "init_values": (2, 2), **SIZE}
    kinds = {
        "chunkwise_recurrents": [not whole for whole in WHOLE],
        "layerscales": SCALED,
        "use_checkpoints": [False] * 2,
    }
    model = module.VisRetNet(num_classes=CLASSES, projection=PROJECTION, **kinds, **options)
    buffers = {name: value.numpy().copy() for name, value in model.named_buffers() if ".Relpos." in name}
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in buffers}
    state = {name: torch.from_numpy(array) for name, array in seeded.weights(shapes, SEED).items()}
    model.load_state_dict(state, strict=False)
    model.eval()
    features: list[Any] = []
    for stage in model.layers:
        stage.blocks[-1].register_forward_hook(lambda _, __, out: features.append(out.detach().numpy()))
    found, gradient = outputs_and_gradient(lambda x: [model(x)], seeded.images(PIXELS, SEED))
    arrays = {"logits": found[0], "gradient": gradient[:, ::2, 1::2]}
    arrays |= {f"features/{stage}": feature for stage, feature in enumerate(features)}
    git = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    about = {"repository": "github.com/qhfan/RMT", "commit": commit, "torch": torch.__version__}
    return {**arrays, **buffers, "about": np.array(json.dumps({**about, "counts": counts, "shapes": shapes}))}


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))  # type: ignore[arg-type]
    print(f"{PATH}: {PATH.stat().st_size} bytes")
