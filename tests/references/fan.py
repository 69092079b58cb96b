"""Records outputs of the authors' FAN and TAP-FAN: ``python -m tests.references.fan CLONES`` writes fan.npz beside it.

CLONES holds checkouts of github.com/NVlabs/FAN (Nvidia Source Code License-NC) and github.com/guoyongcs/TAPADL (MIT).
Only numbers are kept. The models are the authors' classes, narrow and shallow, with weights and images from
:mod:`tests.references.seeded`; the published models' parameter counts, and of the second the loss, are recorded as
well.
"""

from __future__ import annotations

import collections
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded
from tests.references.weighted_scores import classes

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES = 31, 10
# Without pooling, of patches of 8 pixels on an oblong map; and with it on 6x6 tokens of the hybrid's.
IMAGES = {"plain": (2, 32, 48, 3), "pooled": (2, 96, 96, 3)}
KEPT = {"gradient": np.s_[:, ::4, 1::2]}
SIZE = {"embed_dim": 32, "num_heads": 4, "depth": 2, "mlp_ratio": 2.0}
HYBRID_FEATURES, HYBRID, SCALES = (8, 16), (1, 2), 4
COUNTED = (
    "tiny_12_p16_224", "small_12_p16_224", "base_18_p16_224", "large_24_p16_224", "tiny_8_p4_hybrid",
    "small_12_p4_hybrid", "base_16_p4_hybrid", "large_16_p4_hybrid",
)  # fmt: skip
FOLDERS = {
    "plain": ("NVlabs", "FAN", "models/fan.py"),
    "pooled": ("guoyongcs", "TAPADL", "TAPADL_FAN/models/tap_fan.py"),
}


def attention() -> np.ndarray:
    """Weights of one layer, (batch, heads, length, length), of which some are large: those of a loss."""
    logits = 4 * seeded.generator("attention", SEED).standard_normal((2, 3, 20, 20)) + np.linspace(-4, 4, 20)
    weights = np.exp(logits)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def _made(cls: Any, *_: Any, **options: Any) -> Any:
    """In place of timm's ``build_model_with_cfg``."""
    return cls(**{name: value for name, value in options.items() if not name.endswith(("_cfg", "_fn", "_strict"))})


def _given() -> dict[str, Any]:
    """What the authors' files import."""
    from einops import rearrange

    from tests.references.live import timm, torch

    nn, layers = torch.nn, timm.layers
    given: dict[str, Any] = {"torch": torch, "nn": nn, "F": nn.functional, "math": math, "partial": partial}
    given |= {"DropPath": layers.DropPath, "to_2tuple": layers.to_2tuple, "trunc_normal_": lambda *_, **__: None}
    given |= {"MlpOri": layers.Mlp, "Mlp": layers.Mlp, "OrderedDict": collections.OrderedDict, "rearrange": rearrange}
    given |= {"register_model": lambda f: f, "register_notrace_module": lambda c: c, "build_model_with_cfg": _made}
    given |= {"named_apply": lambda *_, **__: None, "default_cfgs": collections.defaultdict(dict)}
    return given | {"ClassAttn": timm.models.cait.ClassAttn, "checkpoint_filter_fn": None}


def authors(clone: Path, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Their modules of the models and of ConvNeXt, of the repository of a case."""
    path = clone / FOLDERS[case][2]
    convnext = classes(path.parent / "convnext_utils.py", _given())
    names = ("_create_hybrid_backbone", "DilationPredictor", "DilatedAvgPooling")
    return classes(path, _given() | {part: convnext[part] for part in names if part in convnext}), convnext


def published(clone: Path, name: str) -> Any:
    """The authors' published model that ours of this name is."""
    if name.startswith("tap_"):
        return authors(clone, "pooled")[0][name](num_scales=SCALES)
    return authors(clone, "plain")[0][name]()


def record(clones: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from einops import rearrange

    from tests.references.live import torch

    arrays: dict[str, np.ndarray] = {}
    shapes, counts, about = {}, {}, {}
    for case, (owner, name, _) in FOLDERS.items():
        module, convnext = authors(clones / name, case)
        start, more = ("fan_", {}) if case == "plain" else ("tap_fan_", {"num_scales": SCALES})
        for size in COUNTED:
            counts[f"{start}{size}"] = recording.count(published(clones / name, f"{start}{size}"))
        trunk = {"depths": HYBRID, "dims": HYBRID_FEATURES, "use_head": False}
        shape: dict[str, Any] = {"patch_size": 8, "sr_ratio": [1] * 2, "tokens_norm": True, "num_classes": CLASSES}
        shape |= more if case == "plain" else {**more, "patch_size": 16, "backbone": convnext["ConvNeXt"](**trunk)}
        model = module["FAN"](**SIZE, **shape)
        shapes[case] = recording.give_weights(model, SEED)

        def features(out: Any) -> np.ndarray:
            out = rearrange(out[0], "b c h w -> b (h w) c") if isinstance(out, list) else out
            return out.detach().numpy()

        found = recording.outputs(model, model.blocks, seeded.images(IMAGES[case], SEED), KEPT, features)
        arrays |= recording.under(case, found)
        about[case] = f"github.com/{owner}/{name} {recording.commit(clones / name)[:8]}"
    loss = classes(clones / "TAPADL" / "TAPADL_FAN" / "main.py", _given(), ("AttentionDiversificationLoss",))
    with torch.no_grad():
        arrays["diversity"] = loss["AttentionDiversificationLoss"]([torch.from_numpy(attention())]).numpy()
    return arrays | recording.about("github.com/NVlabs/FAN", clones / "FAN", counts=counts, shapes=shapes, **about)


if __name__ == "__main__":
    recording.write(PATH, record)
