"""Records outputs of the authors' RSMamba: ``python -m tests.references.rsmamba CLONE`` writes rsmamba.npz beside it.

CLONE is a checkout of github.com/KyanChen/RSMamba (Apache 2.0). Only numbers are kept. The backbone is the authors'
class with the Mamba of transformers, narrow and shallow, with a linear head and with weights and images from
:mod:`tests.references.seeded`; of mmengine, mmcv and mmpretrain there is only what it takes from them. The shuffled
orders, which it draws at each call, are those of ours in evaluation. The parameters of the published sizes are counted
as well.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, SIDE = 43, 10, 36
CASES = {"gate": "forward_reverse_shuffle_gate", "mean": "forward_reverse_mean"}
IMAGES = dict.fromkeys(CASES, (2, SIDE, SIDE, 3))
KEPT: dict[str, Any] = {}
SIZE = {"embed_dims": 16, "num_layers": 2, "feedforward_channels": 32}
PATCH, STRIDE = 8, 4


def orders(length: int, depth: int) -> Iterator[Any]:
    """The shuffled orders of the blocks of a model, those that ours have in evaluation, again for each image."""
    import jax

    from layers.multi_path import random_numbers
    from tests.references.live import torch

    for block in itertools.cycle(range(depth)):
        yield torch.from_numpy(np.argsort(np.asarray(random_numbers(jax.random.key(block), length))))


def authors(clone: Path) -> Any:
    """Their class of backbones."""
    from transformers import MambaConfig

    from tests.references.live import torch

    nn = torch.nn

    class PatchEmbed(nn.Module):
        """mmcv's, with zeros at the bottom and the right ("corner")."""

        def __init__(self, in_channels: int, embed_dims: int, kernel_size: int, stride: int, input_size: int, **_: Any):
            super().__init__()
            self.projection = nn.Conv2d(in_channels, embed_dims, kernel_size, stride, bias=False)
            self.size, self.stride = kernel_size, stride
            self.init_out_size = (math.ceil(input_size / stride),) * 2

        def forward(self, x: Any) -> Any:
            ends = [max((math.ceil(s / self.stride) - 1) * self.stride + self.size - s, 0) for s in x.shape[2:]]
            x = self.projection(nn.functional.pad(x, (0, ends[1], 0, ends[0])))
            return x.flatten(2).transpose(1, 2), tuple(x.shape[2:])

    class Base(nn.Module):
        def __init__(self, init_cfg: Any = None):
            super().__init__()

    def config(given: dict[str, Any]) -> Any:
        return MambaConfig(num_hidden_layers=64, **given)

    recording.stand_in(
        {
            "mmengine": {"Config": config},
            "mmengine.model": {"ModuleList": nn.ModuleList},
            "mmengine.model.weight_init": {"trunc_normal_": None},
            "mmcv": {},
            "mmcv.cnn": {},
            "mmcv.cnn.bricks": {},
            "mmcv.cnn.bricks.transformer": {"PatchEmbed": PatchEmbed},
            "mmpretrain": {},
            "mmpretrain.registry": {"MODELS": type("MODELS", (), {"register_module": lambda: lambda kind: kind})},
            "mmpretrain.models": {"build_2d_sincos_position_embedding": None},
            "mmpretrain.models.utils": {
                "build_norm_layer": lambda cfg, width: nn.LayerNorm(width, eps=cfg["eps"]),
                "resize_pos_embed": None,
                "to_2tuple": lambda size: (size, size),
            },
            "mmpretrain.models.backbones": {},
            "mmpretrain.models.backbones.base_backbone": {"BaseBackbone": Base},
        }
    )
    return recording.module_of(clone / "mmpretrain/rsmamba/models/models.py").RSMamba


def classifier(clone: Path) -> Any:
    """The class of models: the authors' backbone and a linear head."""
    from tests.references.live import torch

    build = authors(clone)

    class Classifier(torch.nn.Module):
        """mmpretrain's, of the backbone and a linear head."""

        def __init__(self, classes: int, **options: Any):
            super().__init__()
            self.backbone = build(out_indices=[-1], **options)
            self.head = torch.nn.ModuleDict({"fc": torch.nn.Linear(self.backbone.embed_dims, classes)})

        def forward(self, x: Any) -> Any:
            return self.head["fc"](self.backbone(x)[0])

    return Classifier


def shuffle(length: int, depth: int) -> None:
    """Orders that are drawn from now on are those of :func:`orders`."""
    from tests.references.live import torch

    drawn = orders(length, depth)
    torch.randperm = lambda _: next(drawn)


def published(clone: Path, name: str) -> Any:
    """The authors' published model that ours of this name is, with our orders."""
    model = classifier(clone)(45, arch=name.removeprefix("rsmamba_"), patch_cfg={"stride": 8})
    shuffle(28 * 28, len(model.backbone.layers))
    return model


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    build = classifier(clone)
    names = ("small", "base", "large", "huge")
    counts = {name: recording.count(published(clone, f"rsmamba_{name}")) for name in names}
    shuffle(math.ceil(SIDE / STRIDE) ** 2, SIZE["num_layers"])
    arrays: dict[str, np.ndarray] = {}
    shapes = {}
    for case, paths in CASES.items():
        options = {"img_size": SIDE, "patch_size": PATCH, "patch_cfg": {"stride": STRIDE}, "path_type": paths}
        model = build(CLASSES, arch=SIZE, **options)
        shapes[case] = recording.give_weights(model, SEED)
        seen: list[np.ndarray] = []
        read = lambda _, given, seen=seen: seen.append(given[0][:2].detach().numpy().copy())  # noqa: E731
        for norm in (model.backbone.pre_norm, model.backbone.ln1):
            norm.register_forward_pre_hook(read)
        found = recording.outputs(model, [], seeded.images(IMAGES[case], SEED), KEPT)
        # What the norms read is what the blocks before them gave.
        found |= {f"features/{i}": array for i, array in enumerate(seen[1:])}
        arrays |= recording.under(case, found)
    return arrays | recording.about("github.com/KyanChen/RSMamba", clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
