"""Records outputs of the authors' T2T-ViT: ``python -m tests.references.t2t_vit CLONE`` writes t2t_vit.npz beside it.

CLONE is a checkout of github.com/yitu-opensource/T2T-ViT (Clear BSD). Only numbers are kept. The models are the
authors' class, narrow and shallow, with weights and images from :mod:`tests.references.seeded` and their own table of
positions; the published models' parameter counts are recorded as well.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import seeded

PATH = Path(__file__).with_suffix(".npz")
SEED = 11
SIZE: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "token_dim": 8}
IMAGES = (64, 96)
TOKENS = ("performer", "transformer")
COUNTED = ("7", "10", "12", "14", "19", "24", "t_14", "t_19", "t_24", "14_resnext", "14_wide")


def authors(clone: Path) -> Any:
    """Their module models/t2t_vit.py, without the rest of their package."""
    from tests.references.live import timm

    sys.path.insert(0, str(clone))
    package = types.ModuleType("models")
    package.__path__ = [str(clone / "models")]
    sys.modules["models"] = package
    # What they import from the timm of their time, of which only the drop path and the initializer are used.
    wanted = {"helpers": ("load_pretrained",), "registry": ("register_model",), "layers": ("trunc_normal_", "DropPath")}
    for name, parts in wanted.items():
        stub = sys.modules[f"timm.models.{name}"] = types.ModuleType(name)
        for part in parts:
            setattr(stub, part, getattr(timm.layers, part, lambda function=None, **_: function))
    return importlib.import_module("models.t2t_vit")


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import outputs_and_gradient, torch

    module = authors(clone)
    arrays: dict[str, np.ndarray] = {}
    shapes: dict[str, Any] = {}
    for tokens in TOKENS:
        for side in IMAGES:
            model = module.T2T_ViT(img_size=side, tokens_type=tokens, num_classes=10, **SIZE)
            state = model.state_dict()
            names = {name: tuple(value.shape) for name, value in state.items() if name != "pos_embed"}
            drawn = {name: torch.from_numpy(array) for name, array in seeded.weights(names, SEED).items()}
            model.load_state_dict({**drawn, "pos_embed": state["pos_embed"]})
            model.eval()
            features: list[Any] = []

            def keep(_: Any, __: Any, out: Any, features: list[Any] = features) -> None:
                features.append(out)

            hooks = [part.register_forward_hook(keep) for part in (model.tokens_to_token, *model.blocks)]
            pixels = seeded.images((1, side, side, 3), SEED)
            found, gradient = outputs_and_gradient(lambda x, model=model: [model(x)], pixels)
            for hook in hooks:
                hook.remove()
            arrays[f"{tokens}/{side}/logits"], arrays[f"{tokens}/{side}/gradient"] = found[0], gradient[:, ::4, 1::4]
            last_row = [feature.detach().numpy()[:, -(side // 16) :] for feature in features]
            arrays[f"{tokens}/{side}/features"] = np.concatenate(last_row)
            arrays[f"{tokens}/{side}/pos_embed"] = state["pos_embed"].numpy()[:, :, :8]
        shapes[tokens] = names
    models = {name: getattr(module, f"t2t_vit_{name}")() for name in COUNTED}
    counts = {name: [_count(model, trained) for trained in (True, False)] for name, model in models.items()}
    git = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    about = {"repository": "github.com/yitu-opensource/T2T-ViT", "commit": commit, "torch": torch.__version__}
    about |= {"counts": counts, "shapes": shapes}
    return {**arrays, "about": np.array(json.dumps(about))}


def _count(model: Any, trained: bool) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or not trained)


if __name__ == "__main__":
    np.savez_compressed(PATH, **record(Path(sys.argv[1])))  # type: ignore[arg-type]
    print(f"{PATH}: {PATH.stat().st_size} bytes")
