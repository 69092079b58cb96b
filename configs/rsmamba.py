"""RSMamba (K. Chen et al., arXiv:2403.19654).

The authors' recipe for three remote sensing data sets (KyanChen/RSMamba: configs/rsmamba), here for any data set: 500
epochs at 224 pixels, AdamW, batch 64, peak learning rate 5e-4, weight decay 0.05, cosine to 1e-5 after 10 epochs of
warm-up, crops of 40 % to 100 % of the image, label smoothing 0.1, mixup 0.8, CutMix 1.

Different: RandAugment in place of AutoAugment, and no vertical flips.
"""

from __future__ import annotations

from configs.common import Architecture, digits, imagenet, vision

_CROP = {"task": {"augment": {"crop_scale": (0.4, 1.0)}}}
ARCHITECTURE = Architecture(
    digits=digits("rsmamba_nano_32", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=imagenet(
        64,
        5e-4,
        warmup="10 epochs",
        final=0.02,
        rand_augment="rand-m9-mstd0.5-inc1",
        mix={"mixup": 0.8, "cutmix": 1.0},
        train_for="500 epochs",
    ),
    variants={size: {"model": f"rsmamba_{size}", **_CROP} for size in ("small", "base", "large", "huge")},
    default="base",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
