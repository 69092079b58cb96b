"""Records outputs of the authors' TransNeXt and MoH-TransNeXt: ``python -m tests.references.transnext CLONES`` writes
transnext.npz beside it.

CLONES holds checkouts of github.com/DaiShiResearch/TransNeXt and github.com/SkyworkAI/MoH (both Apache 2.0). Only
numbers are kept. The models are the authors' classes without their CUDA extension, narrow and shallow, with weights and
images from :mod:`tests.references.seeded`; the published models' parameter counts are recorded as well.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
# Of the four maps, one is pooled by parts that overlap, two by parts of equal size, and one not at all.
SEED, CLASSES, SIDE = 29, 10, 64
CASES = ("plain", "moh")
IMAGES = dict.fromkeys(CASES, (2, SIDE, SIDE, 3))
KEPT = {"gradient": np.s_[:, ::2, 1::2], "features": np.s_[:, ::3]}
WIDTHS, DEPTHS, HEADS, RATIOS, REDUCTIONS = (16, 24, 32, 32), (1, 1, 1, 2), (2, 3, 4, 4), (3, 2, 2, 2), (5, 2, 2, 1)
SHARED, CHOSEN = (2, 1, 0, 2), (0, 1, 2, 1)
PRETRAINED = 128
COUNTED = {
    "plain": ("micro", "micro_AAAA", "tiny", "small", "small_384", "base", "base_384"),
    "moh": ("small_75", "small_80", "base_50", "base_75"),
}
REPOSITORIES = {"plain": ("TransNeXt", "classification"), "moh": ("MoH", "MoH-ViT")}


def authors(clone: Path, case: str) -> Any:
    """Their module of the models, of the repository of a case."""
    recording.stand_in_timm()
    recording.stand_in(
        {
            "pkg_resources": {"get_distribution": _not_installed, "DistributionNotFound": ModuleNotFoundError},
            "timm.models.vision_transformer": {"_cfg": dict},
        }
    )
    folder = str(clone / REPOSITORIES[case][1])
    for part in ("attention", "attention_native"):  # each repository has its own
        sys.modules.pop(part, None)
    sys.path.insert(0, folder)
    try:
        return recording.module_of(Path(folder) / "transnext.py")
    finally:
        sys.path.remove(folder)


def published(clone: Path, name: str) -> Any:
    """The authors' published model that ours of this name is."""
    sizes = {"_aaaa": {"img_size": 256}, "_384": {"img_size": 384, "pretrain_size": 224}}
    options: dict[str, int] = next((given for end, given in sizes.items() if name.endswith(end)), {})
    theirs = name.removesuffix("_384").replace("_aaaa", "_AAAA")
    return getattr(authors(clone, "moh" if name.startswith("moh_") else "plain"), theirs)(**options)


def record(clones: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    from tests.references.live import torch

    arrays: dict[str, np.ndarray] = {}
    shapes, counts, about = {}, {}, {}
    for case, (name, _) in REPOSITORIES.items():
        module = authors(clones / name, case)
        for size in COUNTED[case]:
            ours = f"{'moh_' if case == 'moh' else ''}transnext_{size.lower()}"
            counts[ours] = recording.count(published(clones / name, ours))
        shape: dict[str, Any] = {"embed_dims": WIDTHS, "depths": DEPTHS, "num_heads": HEADS, "mlp_ratios": RATIOS}
        shape |= {"sr_ratios": REDUCTIONS, "img_size": SIDE, "pretrain_size": PRETRAINED}
        shape |= {"shared_head": SHARED, "routed_head": CHOSEN} if case == "moh" else {}
        norm: Any = partial(torch.nn.LayerNorm, eps=1e-6)
        model = module.TransNeXt(patch_size=4, num_classes=CLASSES, qkv_bias=True, norm_layer=norm, **shape)
        shapes[case] = recording.give_weights(model, SEED)
        last = [getattr(model, f"norm{stage + 1}") for stage in range(4)]
        found = recording.outputs(model, last, seeded.images(IMAGES[case], SEED), KEPT)
        arrays |= recording.under(case, found)
        about[case] = f"github.com/{'SkyworkAI' if case == 'moh' else 'DaiShiResearch'}/{name}"
        about[case] += f" {recording.commit(clones / name)[:8]}"
    return arrays | recording.about(
        "github.com/DaiShiResearch/TransNeXt", clones / "TransNeXt", counts=counts, shapes=shapes, **about
    )


def _not_installed(name: str) -> None:
    raise ModuleNotFoundError(name)


if __name__ == "__main__":
    recording.write(PATH, record)
