"""OverLoCK (M. Lou, Y. Yu, arXiv:2502.20087).

The ImageNet-1k recipe is the authors' (LMMMEng/OverLoCK: scripts/, train.py): 300 epochs at 224 pixels, AdamW, batch
2048 and peak learning rate 2e-3, weight decay 0.05, cosine to 1e-5 after 5 epochs of warm-up, gradients clipped at a
norm of 5, averaged weights; an auxiliary loss on the overview's logits has a weight of 0.4; stochastic depth 0.1 for
XT, 0.15 for T, 0.4 for S and 0.5 for B.

Different: the last 10 epochs at the lowest learning rate are left out. RandAugment drops color jitter 0.4, as timm does
where both are on.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

_OVERVIEW = {"aux_logits": {"overview": 0.4}}
_RECIPE = deit(2048, 2e-3, final=0.005, ema=0.9999)

ARCHITECTURE = Architecture(
    digits={**digits("overlock_nano"), "task": _OVERVIEW},
    imagenet={
        **_RECIPE,
        "optimizer": {**_RECIPE["optimizer"], "clip_norm": 5.0},
        "task": {**_RECIPE.get("task", {}), **_OVERVIEW},
    },
    variants={size: {"model": f"overlock_{size}"} for size in ("xt", "t", "s", "b")},
    default="xt",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
