"""Records outputs of the authors' OverLoCK: ``python -m tests.references.overlock CLONE`` writes the .npz beside it.

CLONE is a checkout of github.com/LMMMEng/OverLoCK (Apache-2.0). Only numbers are kept. The model is the authors' class
of image classification, narrow and shallow, with weights and images from :mod:`tests.references.seeded`, in both forms,
in evaluation and, with the logits of the overview, in training; and the block with context mixing that they give for
other models. The sums over neighborhoods, which they have from
NATTEN, are made by lookups here. The published models' parameter counts are recorded as well, and their counts without
the overview's classifier.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES = 21, 10
IMAGES = dict.fromkeys(("train", "deploy"), (2, 144, 112, 3))
MAP = (2, 9, 6, 16)
KEPT = {"gradient": np.s_[:, ::8, 1::8], "features": np.s_[:, ::2, 1::2]}
# At stage 3 the map, of 9x7 tokens, is as wide as the kernel; that of stage 4, 5x4, is stretched to it.
SIZE: dict[str, Any] = {
    "embed_dim": [8, 8, 16, 24], "depth": [1, 1, 1, 1], "kernel_size": [9, 7, 7, 5], "mlp_ratio": [2] * 4,
    "sub_depth": [2, 1], "sub_num_heads": [2, 3], "sub_mlp_ratio": [2, 2], "projection": 20
}  # fmt: skip


def _average(weights: Any, values: Any, kernel_size: int) -> Any:
    """NATTEN's ``na2d_av``: values (batch, heads, height, width, features) summed by weights (batch, heads, height,
    width, kernel_size ** 2) over windows that move inward at the border.
    """
    from tests.references.live import torch

    def seen(length: int) -> Any:
        start = (torch.arange(length) - kernel_size // 2).clamp(0, length - kernel_size)
        return start[:, None] + torch.arange(kernel_size)

    height, width = values.shape[2:4]
    windows = values[:, :, seen(height)][:, :, :, :, seen(width)]  # (batch, heads, height, k, width, k, features)
    weights = weights.unflatten(-1, (kernel_size, kernel_size))
    return torch.einsum("bhyxij,bhyixjc->bhyxc", weights, windows)


def _map(out: Any) -> np.ndarray:
    """A block's output, in the focus net features and context side by side, channels last."""
    from tests.references.live import torch

    parts = [part for part in (out if isinstance(out, tuple) else (out,)) if part is not None]
    return recording.channels_last(torch.cat(parts, 1))


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import torch

    recording.stand_in_timm()
    recording.stand_in(
        {
            "natten": {},
            "natten.functional": {"na2d_av": _average},
            "mmengine": {},
            "mmengine.runner": {"load_checkpoint": None},
        }
    )
    module = recording.module_of(clone / "models" / "overlock.py")
    counts: dict[str, int] = {}
    without_head: dict[str, int] = {}
    for name in ("xt", "t", "s", "b"):
        for form, merged in (("", False), ("_reparam", True)):
            model = getattr(module, f"overlock_{name}")(deploy=merged, use_gemm=False)
            counts[f"{name}{form}"] = recording.count(model)
            without_head[f"{name}{form}"] = counts[f"{name}{form}"] - recording.count(model.aux_head)
    arrays: dict[str, np.ndarray] = {}
    shapes: dict[str, Any] = {}
    pixels = seeded.images(IMAGES["train"], SEED)
    for case in IMAGES:
        model = module.OverLoCK(num_classes=CLASSES, use_gemm=False, deploy=case == "deploy", **SIZE)
        shapes[case] = recording.give_weights(model, SEED)
        parts = [model.blocks1[-1], model.blocks2[-1], model.sub_blocks3[-1], model.sub_blocks4[-1]]
        arrays |= recording.under(case, recording.outputs(model, parts, pixels, KEPT, _map))
        if case == "train":
            model.train()
            with torch.no_grad():
                out = model(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
            arrays |= {f"training/{name}": out[name].numpy() for name in ("main", "aux")}
    recording.stand_in({"timm.models.layers": vars(module.timm.layers)})
    block = recording.module_of(clone / "models" / "contmix.py").ContMixBlock(MAP[-1], num_heads=1, mlp_ratio=2)
    shapes["block"] = recording.give_weights(block, SEED)
    x = torch.from_numpy(seeded.images(MAP, SEED).transpose(0, 3, 1, 2)).requires_grad_()
    out = block(x)
    torch.sin(out).sum().backward()
    arrays |= {f"block/{name}": recording.channels_last(value) for name, value in (("out", out), ("gradient", x.grad))}
    found = {"counts": counts, "counts_without_head": without_head, "shapes": shapes}
    return arrays | recording.about("github.com/LMMMEng/OverLoCK", clone, **found)


if __name__ == "__main__":
    recording.write(PATH, record)
