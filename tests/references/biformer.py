"""Records outputs of the authors' BiFormer: ``python -m tests.references.biformer CLONE`` writes biformer.npz beside
this file.

CLONE is a checkout of github.com/rayleizhu/BiFormer (MIT). Only numbers are kept. The model is the
authors' class, narrow and shallow, with weights and images from :mod:`tests.references.seeded`; the
published models' parameter counts are recorded as well.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED = 10
SHARPNESS = 3.0
FEATURES, DEPTHS, HEAD_DIM, TOPK, CLASSES = (8, 16, 32, 64), (2, 1, 1, 2), 8, (1, 4, 16, -2), 10
IMAGES = {"even": (1, 112, 112, 3), "odd": (1, 101, 105, 3)}
KEPT = {"gradient": np.s_[:, ::4, 1::4]}
SMALLEST_GAP = 1e-3


def authors(clone: Path) -> Any:
    """Their module models/biformer.py, without the rest of their package."""
    sys.path.insert(0, str(clone))
    package = types.ModuleType("models")
    package.__path__ = [str(clone / "models")]
    sys.modules["models"] = package
    # Gradient checkpointing, which they import from fairscale, is not used here.
    checkpoint = {"checkpoint_wrapper": lambda module: module}
    recording.stand_in({"fairscale": {}, "fairscale.nn": {}, "fairscale.nn.checkpoint": checkpoint})
    return importlib.import_module("models.biformer")


def published(clone: Path, name: str) -> Any:
    """The authors' published model that ours of this name is."""
    return getattr(authors(clone), name)()


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import outputs_and_gradient

    source = authors(clone)
    model = source.BiFormer(
        depth=list(DEPTHS),
        embed_dim=list(FEATURES),
        qk_dims=list(FEATURES),
        head_dim=HEAD_DIM,
        mlp_ratios=[3] * 4,
        topks=list(TOPK),
        kv_downsample_mode="identity",
        kv_per_wins=[-1] * 4,
        num_classes=CLASSES,
        auto_pad=True,
    )
    shapes = recording.give_weights(model, SEED, sharpness=SHARPNESS)
    seen: dict[str, Any] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in ("BiLevelRoutingAttention", "AttentionLePE"):
            module.register_forward_hook(lambda _, __, out, name=name: seen.update({f"attention/{name}": out}))
        if kind == "TopkRouting":
            module.register_forward_hook(
                lambda m, args, out, name=name: seen.update({f"routes/{name}": out[1], f"gap/{name}": _gap(m, *args)})
            )
        if name.startswith("stages.") and name.count(".") == 1:
            module.register_forward_hook(
                lambda _, __, out, name=name: seen.update({f"features/{name}": out.permute(0, 2, 3, 1)})
            )

    arrays: dict[str, np.ndarray] = {}
    for title, shape in IMAGES.items():
        seen.clear()
        (logits,), gradient = outputs_and_gradient(lambda x: [model(x)], seeded.images(shape, SEED))
        found = {name: value.detach().numpy() for name, value in seen.items()}
        gap = min(float(value) for name, value in found.items() if name.startswith("gap/"))
        if gap <= SMALLEST_GAP:
            raise SystemExit(f"{title}: the gap at k is {gap}: take another SEED")
        arrays[f"{title}/logits"], arrays[f"{title}/gradient"] = logits, gradient[:, ::4, 1::4]
        for name, value in found.items():
            if name.startswith("routes/"):
                arrays[f"{title}/{name}"] = np.sort(value, -1).astype(np.uint8)
            elif title == "even" and not name.startswith("gap/"):
                arrays[f"{title}/{name}"] = value.astype(np.float32)
            elif name == "features/stages.3":
                arrays[f"{title}/{name}"] = value
    names = ("biformer_tiny", "biformer_small", "biformer_base")
    counts = {name: recording.count(published(clone, name)) for name in names}
    return arrays | recording.about("github.com/rayleizhu/BiFormer", clone, counts=counts, shapes=shapes)


def _gap(router: Any, query: Any, key: Any) -> Any:
    """Smallest distance between the last score that is chosen and the first that is not."""
    scores = ((query * router.scale) @ key.transpose(-2, -1)).sort(-1, descending=True).values
    return (scores[..., router.topk - 1] - scores[..., router.topk]).min()


if __name__ == "__main__":
    recording.write(PATH, record)
