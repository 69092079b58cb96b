"""Records outputs of the authors' NAT, DiNAT and DiNAT_s: ``python -m tests.references.nat CLONE`` writes nat.npz
beside it.

CLONE is a checkout of github.com/SHI-Labs/Neighborhood-Attention-Transformer (MIT). Only numbers are kept. The models
are the authors' classes, narrow and shallow, with weights and images from :mod:`tests.references.seeded`; the
parameter counts of all published models are recorded as well. The layer of the package natten, whose compiled
operator has the biases that the released models need in old versions alone, is replaced by a plain gather of each
query's keys, written after its documented rule.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES = 17, 10
KEPT = {"gradient": np.s_[:, ::2, 1::2], "features": np.s_[:, ::2]}
# NAT has layer scale, DiNAT dilation; sides are odd where the dilation does not divide them.
IMAGES: dict[str, tuple[int, ...]] = {"nat": (1, 48, 64, 3), "dinat": (1, 56, 76, 3), "dinat_s": (1, 56, 80, 3)}
WIDTH, DEPTHS, HEADS, WINDOW = 16, (2, 1), (2, 4), 3
DILATIONS = {"nat": None, "dinat": ((1, 4), (1,)), "dinat_s": ((1, 4), (1,))}
MODULES = {
    "nat": ("nat", "NAT", ("mini", "tiny", "small", "base")),
    "dinat": (
        "dinat",
        "DiNAT",
        ("mini", "tiny", "small", "base", "large", "large_384", "large_384_11x11", "large_21k", "large_21k_11x11"),
    ),
    "dinat_s": ("dinats", "DiNAT_s", ("tiny", "small", "base", "large", "large_384", "large_21k")),
}


def _keys(length: int, window: int, dilation: int) -> np.ndarray:
    """The keys of each query along an axis, (length, window): the window around it among the tokens of its residue."""
    found = np.zeros((length, window), int)
    for query in range(length):
        own = np.arange(query % dilation, length, dilation)
        start = min(max(query // dilation - window // 2, 0), len(own) - window)
        found[query] = own[start : start + window]
    return found


def _attention(torch: Any) -> Any:
    class NeighborhoodAttention2D(torch.nn.Module):
        def __init__(
            self, dim: int, kernel_size: int, num_heads: int, dilation: int | None = None, **options: Any
        ) -> None:
            super().__init__()
            assert (options["qkv_bias"], options["bias"], options["qk_scale"]) == (True, True, None)
            self.qkv, self.proj = torch.nn.Linear(dim, 3 * dim), torch.nn.Linear(dim, dim)
            self.rpb = torch.nn.Parameter(torch.zeros(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
            self.window, self.dilation, self.heads = kernel_size, dilation or 1, num_heads

        def forward(self, x: Any) -> Any:
            batch, height, width, dim = x.shape
            q, k, v = self.qkv(x).reshape(batch, height, width, 3, self.heads, -1).unbind(3)
            rows, columns = (_keys(size, self.window, self.dilation) for size in (height, width))
            at = (slice(None), rows[:, None, :, None], columns[None, :, None, :])
            scores = torch.einsum("byxhd,byxijhd->byxhij", q * (dim // self.heads) ** -0.5, k[at])
            offsets = [
                (keys - np.arange(len(keys))[:, None]) // self.dilation + self.window - 1 for keys in (rows, columns)
            ]
            bias = self.rpb[:, offsets[0][:, None, :, None], offsets[1][None, :, None, :]]
            scores = (scores + bias.permute(1, 2, 0, 3, 4)).flatten(-2).softmax(-1)
            y = torch.einsum("byxhn,byxnhd->byxhd", scores, v[at].flatten(3, 4))
            return self.proj(y.reshape(batch, height, width, dim))

    return NeighborhoodAttention2D


def authors(clone: Path) -> dict[str, Any]:
    """Their modules of image classification."""
    from tests.references.live import torch

    recording.stand_in_timm()
    recording.stand_in({"natten": {"NeighborhoodAttention2D": _attention(torch)}})
    sys.path.insert(0, str(clone / "classification"))
    return {name: importlib.import_module(module) for name, (module, _, _) in MODULES.items()}


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    found, arrays = authors(clone), {}
    counts: dict[str, int] = {}
    shapes: dict[str, Any] = {}
    for name, (_, kind, sizes) in MODULES.items():
        for size in sizes:
            model = getattr(found[name], f"{name}_{size}")(num_classes=21841 if "21k" in size else 1000)
            counts[f"{name}_{size}"] = recording.count(model)
        options: dict[str, Any] = {"embed_dim": WIDTH, "depths": DEPTHS, "num_heads": HEADS, "kernel_size": WINDOW}
        more: dict[str, Any] = {"mlp_ratio": 2, "dilations": DILATIONS[name], "num_classes": CLASSES}
        if name == "nat":
            more["layer_scale"] = 1.0
        model = getattr(found[name], kind)(**options, **more)
        shapes[name] = recording.give_weights(model, SEED)
        last = [stage.blocks[-1] for stage in getattr(model, "levels", None) or model.layers]
        images = seeded.images(IMAGES[name], SEED)
        arrays |= recording.under(name, recording.outputs(model, last, images, KEPT))
    repository = "github.com/SHI-Labs/Neighborhood-Attention-Transformer"
    return arrays | recording.about(repository, clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
