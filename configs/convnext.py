"""ConvNeXt (Z. Liu et al., arXiv:2201.03545).

The ImageNet-1k recipe is the paper's (table 5): 300 epochs at 224 pixels, AdamW, batch 4096, peak learning rate 4e-3,
20 epochs of warm-up, cosine to 1e-6 (facebookresearch/ConvNeXt: main.py), weight decay 0.05, RandAugment of magnitude
9, mixup 0.8, CutMix 1, random erasing 0.25, label smoothing 0.1, averaged weights of decay 0.9999. Stochastic depth is
0.1, 0.4, 0.5 and 0.5, the defaults of the models.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("convnext_mini", learning_rate=4e-3),
    imagenet=deit(4096, 4e-3, warmup="20 epochs", final=1e-6 / 4e-3, ema=0.9999),
    variants={size: {"model": f"convnext_{size}"} for size in ("tiny", "small", "base", "large")},
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
