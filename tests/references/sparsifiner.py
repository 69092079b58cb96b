"""Records outputs of the authors' Sparsifiner: ``python -m tests.references.sparsifiner CLONE`` writes sparsifiner.npz
beside it.

CLONE is a checkout of github.com/lim142857/Sparsifiner. Only numbers are kept. The model is the authors' class, narrow
and shallow, with weights and images from :mod:`tests.references.seeded` and their default configuration; what each
patch sees is recorded too, and the parameters of the sizes of DeiT are counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.references import recording, seeded

PATH = Path(__file__).with_suffix(".npz")
SEED, CLASSES = 46, 10
CASES = {"sparse": 0.25, "dense": 1.0}
IMAGES = dict.fromkeys(CASES, (2, 24, 24, 3))
KEPT: dict[str, Any] = {}
SIZE: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0, "patch_size": 4}
COUNTED = {f"{size}_patch16_224": (64 * heads, heads) for size, heads in {"tiny": 3, "small": 6, "base": 12}.items()}
COEFFICIENTS, PER_MIXTURE = 4, 3


class Config(dict[str, Any]):
    """Nested fields by attribute; what is not there is False."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name, False)


def authors(clone: Path) -> Any:
    """Makes their model, which returns logits alone, of the connections that are kept, the depth and further sizes."""
    recording.stand_in_timm()
    build = recording.module_of(clone / "src/models/sparsifiner.py").Sparsifiner
    sparsity = Config(
        BASIS_THRESHOLD=0.02,
        BASIS_COEF=Config(USE_TOPK=True, TOPK=COEFFICIENTS),
        ATTN_SCORE=Config(USE_TOPK=True),
    )
    config = Config(SPAR=sparsity, LOSS=Config())

    class Sparsifiner(build):  # type: ignore[misc,valid-type]
        def forward(self, x: Any) -> Any:
            return super().forward(x)["x"]

    def made(keep: float, depth: int, **options: Any) -> Any:
        lists = {"attn_keep_rate_list": [keep] * depth, "token_keep_rate_list": [1.0] * depth}
        lists["token_pruning_loc_indicator"] = [False] * depth
        return Sparsifiner(cfg=config, depth=depth, **lists, **options)

    return made


def published(clone: Path, name: str) -> Any:
    """The authors' model of the size that ours of this name has."""
    width, heads = COUNTED[name.removeprefix("sparsifiner_")]
    return authors(clone)(0.25, 12, embed_dim=width, num_heads=heads, reduce_n_factor=6)


def record(clone: Path) -> dict[str, np.ndarray]:
    """All recorded arrays by name."""
    made = authors(clone)
    counts = {name: recording.count(published(clone, f"sparsifiner_{name}")) for name in COUNTED}
    arrays: dict[str, np.ndarray] = {}
    for case, keep in CASES.items():
        model = made(keep, img_size=24, num_classes=CLASSES, reduce_n_factor=PER_MIXTURE, **SIZE)
        shapes = recording.give_weights(model, SEED, sharpness=3.0)
        read = lambda out: out["x"].detach().numpy()  # noqa: E731
        found = recording.outputs(model, model.blocks, seeded.images(IMAGES[case], SEED), KEPT, read)
        arrays |= recording.under(case, found)
    return arrays | recording.about("github.com/lim142857/Sparsifiner", clone, counts=counts, shapes=shapes)


if __name__ == "__main__":
    recording.write(PATH, record)
