"""Records outputs of the authors' CSWin: ``python -m tests.references.cswin CLONE`` writes cswin.npz beside it.

CLONE is a checkout of github.com/microsoft/CSWin-Transformer (MIT). Only numbers are kept. The model is the authors'
class, narrow and shallow, with weights and images from :mod:`tests.references.seeded`; the published models' parameter
counts are recorded as well.
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
SEED, CLASSES, SIDE = 20, 10, 128
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
    from tests.references.live import timm

    # What it imports from the timm of its time; initial values are replaced.
    wanted: dict[str, dict[str, Any]] = {
        "timm.models.helpers": {"load_pretrained": None},
        "timm.models.layers": {
            "DropPath": timm.layers.DropPath,
            "to_2tuple": timm.layers.to_2tuple,
            "trunc_normal_": lambda *_, **__: None,
        },
        "timm.models.registry": {"register_model": lambda function: function},
    }
    for name, parts in wanted.items():
        stub = sys.modules[name] = types.ModuleType(name)
        vars(stub).update(parts)
    spec: Any = importlib.util.spec_from_file_location("authors_cswin", clone / "models" / "cswin.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import outputs_and_gradient, torch

    module = authors(clone)
    counts = {}
    for name, theirs in COUNTED.items():
        model = getattr(module, theirs)(img_size=int(name[-3:]))
        counts[f"cswin_{name}"] = sum(parameter.numel() for parameter in model.parameters())
    options: dict[str, Any] = {"depth": list(DEPTHS), "num_heads": list(HEADS), "split_size": list(STRIPES)}
    model = module.CSWinTransformer(SIDE, 4, num_classes=CLASSES, embed_dim=WIDTH, mlp_ratio=RATIO, **options)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(array) for name, array in seeded.weights(shapes, SEED).items()})
    model.eval()
    features: list[Any] = []
    for stage in range(4):
        last = getattr(model, f"stage{stage + 1}")[-1]
        last.register_forward_hook(lambda _, __, out: features.append(out.detach().numpy()))
    found, gradient = outputs_and_gradient(lambda x: [model(x)], seeded.images((1, SIDE, SIDE, 3), SEED))
    arrays = {"logits": found[0], "gradient": gradient[:, ::4, 1::4]}
    arrays |= {f"features/{stage}": feature[:, ::5] for stage, feature in enumerate(features)}
    git = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    about = {"repository": "github.com/microsoft/CSWin-Transformer", "commit": commit, "torch": torch.__version__}
    return {**arrays, "about": np.array(json.dumps({**about, "counts": counts, "shapes": shapes}))}


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))  # type: ignore[arg-type]
    print(f"{PATH}: {PATH.stat().st_size} bytes")
