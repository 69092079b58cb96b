"""MaxViT (Z. Tu et al., arXiv:2204.01697).

The ImageNet-1k recipe is that of the authors' repository (google-research/maxvit: hp/vision.py and hp/vision_i1k.py):
300 epochs at 224 pixels, AdamW, batch 4096, peak learning rate 3e-3, cosine to 1e-5 after 10,000 steps of warm-up,
weight decay 0.05, gradients clipped at 1, averaged weights of decay 0.9999, label smoothing 0.1, mixup 0.8, two layers
of RandAugment. Stochastic depth is 0.2, 0.3, 0.4 and 0.6, the defaults of the models.

Different: RandAugment uses timm's set at its largest magnitude, where the authors use AutoAugment's set at 15 of 30.
xlarge was trained only on ImageNet-21k and has no recipe here.
"""

from __future__ import annotations

from configs.common import Architecture, digits, imagenet, vision

ARCHITECTURE = Architecture(
    digits=digits("maxvit_nano"),
    imagenet=imagenet(
        4096,
        3e-3,
        warmup="10000 steps",
        final=1 / 300,
        rand_augment="rand-m10-n2-p1.0-inc1",
        mix={"mixup": 0.8},
        optimizer={"clip_norm": 1.0},
        ema=0.9999,
    ),
    variants={size: {"model": f"maxvit_{size}"} for size in ("tiny", "small", "base", "large")},
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
