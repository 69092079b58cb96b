"""Records outputs of the authors' ViR: ``python -m tests.references.vir CLONE`` writes vir.npz beside it.

CLONE is a checkout of github.com/anom63931/ViR (without a license file). Only numbers are kept. The model is the
authors' class, narrow and shallow, in its recurrent form: one token after the other through all blocks, and then the
head, which that form leaves out. Weights and images are those of :mod:`tests.references.seeded`; the parameters of the
published sizes are counted as well. Its decays are made on a GPU: here on the CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, IMAGES = 44, 10, {"": (2, 20, 20, 3)}
KEPT: dict[str, Any] = {}
SIZE: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0, "patch_size": 4}
COUNTED = {
    "small_patch16_224": (384, 12, 6, 16),
    "base_patch16_224": (768, 12, 12, 16),
    "large_patch16_224": (1024, 24, 16, 16),
    "large_patch14_224": (1024, 24, 16, 14),
}


def authors(clone: Path) -> Any:
    """Their class of models."""
    from tests.references.live import torch

    for name in ("linspace", "arange"):
        made = getattr(torch, name)
        setattr(torch, name, lambda *args, made=made, device=None, **given: made(*args, **given))
    recording.stand_in({"timm.models._registry": {"register_model": lambda function: function}})
    return recording.module_of(clone / "models/vir.py").VisionRetention


def published(clone: Path, name: str) -> Any:
    """The authors' model of the size that ours of this name has, with its head after its chunkwise form."""
    features, depth, heads, patch = COUNTED[name.removeprefix("vir_")]

    class Chunkwise(authors(clone)):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return self.forward_head(self.forward_features(x, mode="chunkwise"))

    return Chunkwise(img_size=(224, 224), embed_dim=features, depth=depth, num_heads=heads, patch_size=patch)


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import torch

    build = authors(clone)
    with torch.device("meta"):
        counts = {name: recording.count(published(clone, f"vir_{name}")) for name in COUNTED}
    side = IMAGES[""][1]
    body = build(img_size=(side, side), num_classes=CLASSES, **SIZE)
    body.num_tokens = (side // SIZE["patch_size"]) ** 2 + 1  # it counts patches of 16 pixels
    shapes = recording.give_weights(body, SEED)

    class Recurrent(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return body.forward_head(body.forward_features(x, mode="recurrent"))

    seen: dict[str, list[np.ndarray]] = {f"features/{i}": [] for i in range(SIZE["depth"])}
    for part, found in zip(body.blocks, seen.values(), strict=True):
        part.register_forward_hook(lambda _, __, out, found=found: found.append(out[0].detach().numpy().copy()))
    arrays = recording.outputs(Recurrent(), [], seeded.images(IMAGES[""], SEED), KEPT)
    arrays |= {name: np.stack(tokens, 1) for name, tokens in seen.items()}
    return arrays | recording.about("github.com/anom63931/ViR", clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
