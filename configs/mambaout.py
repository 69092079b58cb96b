"""MambaOut (W. Yu, X. Wang, arXiv:2405.07992).

The ImageNet-1k recipe is the paper's (section 4.1: that of DeiT without distillation), its details from the authors'
repository (yuweihao/MambaOut: scripts/, distributed_train.sh): 300 epochs at 224 pixels, AdamW, batch 4096, peak
learning rate 4e-3, weight decay 0.05, cosine to 1e-5 after 20 epochs of warm-up; stochastic depth 0.025 for femto and
kobe, 0.2 for tiny, 0.4 for small and 0.6 for base. timm's own models have other recipes, which are not included.

Different: RandAugment drops color jitter 0.4, as timm does where both are on.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("mambaout_nano"),
    imagenet=deit(4096, 4e-3, warmup="20 epochs", final=0.0025),
    variants={size: {"model": f"mambaout_{size}"} for size in ("femto", "kobe", "tiny", "small", "base")},
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
