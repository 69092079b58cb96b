"""Records outputs of the authors' ECA-Net: ``python -m tests.references.eca CLONE`` writes eca.npz beside it.

CLONE is a checkout of github.com/BangguWu/ECANet (MIT). Only numbers are kept. The model is the authors' ResNet of
basic blocks, one in each stage, with weights and images from :mod:`tests.references.seeded`; the published models'
parameter counts are recorded as well.
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
SEED, CLASSES, PIXELS, KERNELS = 19, 10, (1, 45, 70, 3), (3, 5, 7, 7)
COUNTED = {"18": "3577", "34": "3357", "50": "3557", "101": "3357", "152": "3357"}


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import outputs_and_gradient, torch

    sys.path.insert(0, str(clone))
    module = importlib.import_module("models.eca_resnet")
    counts = {}
    for size, kernels in COUNTED.items():
        model = getattr(module, f"eca_resnet{size}")(k_size=[int(k) for k in kernels])
        counts[f"eca_resnet{size}_k{kernels}"] = sum(parameter.numel() for parameter in model.parameters())
    model = module.ResNet(module.ECABasicBlock, [1, 1, 1, 1], num_classes=CLASSES, k_size=list(KERNELS))
    model.avgpool = torch.nn.AdaptiveAvgPool2d(1)  # theirs is for 224 pixels
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(array) for name, array in seeded.weights(shapes, SEED).items()})
    model.eval()
    features: list[Any] = []
    for stage in range(4):
        getattr(model, f"layer{stage + 1}").register_forward_hook(
            lambda _, __, out: features.append(out.detach().numpy().transpose(0, 2, 3, 1).copy())
        )
    found, gradient = outputs_and_gradient(lambda x: [model(x)], seeded.images(PIXELS, SEED))
    arrays = {"logits": found[0], "gradient": gradient[:, ::2, 1::2]}
    arrays |= {f"features/{stage}": feature[:, ::2, ::2, ::4] for stage, feature in enumerate(features)}
    git = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    about = {"repository": "github.com/BangguWu/ECANet", "commit": commit, "torch": torch.__version__}
    return {**arrays, "about": np.array(json.dumps({**about, "counts": counts, "shapes": shapes}))}


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))  # type: ignore[arg-type]
    print(f"{PATH}: {PATH.stat().st_size} bytes")
