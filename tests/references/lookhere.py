"""Records outputs of the authors' LookHere: ``python -m tests.references.lookhere CLONE`` writes lookhere.npz beside it.

CLONE is a checkout of github.com/GreenCUBIC/lookhere (MIT). Only numbers are kept. The model is the authors' class,
narrow and shallow, with weights and images from :mod:`tests.references.seeded`, its penalties in bfloat16 as they have
them; the parameter count of the published size is recorded as well.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, PATCH, PIXELS = 18, 10, 8, (48, 80)
SIZE: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 6, "mlp_ratio": 2.0}
FIELDS, SLOPE, SLOPES = ("eighths1", "none"), 0.7, (1.5, 0.4)


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import outputs_and_gradient, torch

    sys.path.insert(0, str(clone))
    authors = importlib.import_module("lookhere")
    config = {"head_directions": "-".join(FIELDS), "layer_slopes": list(SLOPES), "global_slope": SLOPE}
    whole = authors.LookHere("cpu", dict(config))
    count = sum(parameter.numel() for parameter in whole.parameters())
    model = authors.LookHere("cpu", config, img_size=PIXELS, patch_size=PATCH, num_classes=CLASSES, **SIZE)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(array) for name, array in seeded.weights(shapes, SEED).items()})
    model.eval()
    features: list[Any] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: features.append(out.detach().numpy()))
    found, gradient = outputs_and_gradient(lambda x: [model(x)], seeded.images((1, *PIXELS, 3), SEED))
    arrays = {"logits": found[0], "gradient": gradient[:, ::2, 1::2]}
    arrays |= {f"features/{i}": feature for i, feature in enumerate(features)}
    git = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    about = {"repository": "github.com/GreenCUBIC/lookhere", "commit": commit, "torch": torch.__version__}
    return {**arrays, "about": np.array(json.dumps({**about, "count": count, "shapes": shapes}))}


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))  # type: ignore[arg-type]
    print(f"{PATH}: {PATH.stat().st_size} bytes")
