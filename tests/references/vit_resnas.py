"""Records outputs of the authors' ViT-ResNAS: ``python -m tests.references.vit_resnas CLONE`` writes vit_resnas.npz
beside it.

CLONE is a checkout of github.com/yilunliao/vit-search (CC BY-NC 4.0). Only numbers are kept. The model is the authors'
class, narrow and shallow and without the head for patches, with weights and images from
:mod:`tests.references.seeded`; the published models' parameter counts are recorded as well, of the networks that the
authors' scripts/vit-sr-nas/searched_net have.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES, SIDE = 37, 10, 84
IMAGES = {"": (2, SIDE, SIDE, 3)}
KEPT = {"gradient": np.s_[:, ::3, 1::3]}
WIDTHS, HEAD_DIMS = (16, 24), (8, 12)
BLOCKS = (((3, 24), (1, 40)), ((2, 40), (3, 32)))
COUNTED = {"tiny": "tiny", "small": "small_mac@2.9G", "medium": "medium_mac@4.6G"}


def definition() -> tuple[Any, ...]:
    """The narrow network as the authors write it: patches, blocks of each stage, what is between, and the head."""
    network: list[Any] = [(4, WIDTHS[0])]
    for width, head_dim, blocks in zip(WIDTHS, HEAD_DIMS, BLOCKS, strict=True):
        if len(network) > 1:
            network.append((3, network[-1][1][0], width))
        network += [(1, (width, heads, head_dim), (width, hidden), 1) for heads, hidden in blocks]
    return (*network, (2, WIDTHS[-1], CLASSES))


def authors(clone: Path) -> Any:
    """Their class of models."""
    from tests.references.live import timm, torch

    recording.stand_in_timm()
    recording.stand_in({"timm.models.vision_transformer": {"_cfg": dict, "PatchEmbed": timm.layers.PatchEmbed}})
    torch.Tensor.cuda = lambda tensor: tensor  # they make zeros on a GPU
    package = types.ModuleType("nets")
    package.__path__ = [str(clone / "nets")]
    sys.modules["nets"] = package
    return importlib.import_module("nets.vit_sr_supernet").FlexibleDistillVisionTransformerSR


def published(clone: Path, name: str) -> Any:
    """The authors' network that ours of this name is."""
    size, _, side = name.removeprefix("vit_resnas_").partition("_")
    script = (clone / "scripts" / "vit-sr-nas" / "searched_net" / f"{COUNTED[size]}.sh").read_text()
    found: Any = re.search(r"--network-def '(.*?)'", script)
    network = ast.literal_eval(found[1])
    return authors(clone)(img_size=int(side or 224), distill_token=False, network_def=network)


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    names = (*COUNTED, "medium_280", "medium_392")
    counts = {name: recording.count(published(clone, f"vit_resnas_{name}")) for name in names}
    model = authors(clone)(img_size=SIDE, distill_token=False, num_classes=CLASSES, network_def=definition())
    shapes = recording.give_weights(model, SEED)
    # What is between stages belongs to the block before it.
    parts = [model.blocks[i] for i in (0, 2, 3, 4)]
    images = seeded.images(IMAGES[""], SEED)
    arrays = recording.outputs(model, parts, images, KEPT, features=lambda out: out[0].detach().numpy())
    return arrays | recording.about("github.com/yilunliao/vit-search", clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
