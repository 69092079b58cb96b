"""FocalNet (J. Yang et al., arXiv:2203.11926).

The ImageNet-1k recipe is the paper's (section 4.1: that of Swin), its details from the authors' repository
(microsoft/FocalNet: config.py, configs/*.yaml): 300 epochs at 224 pixels, AdamW, batch 1024, peak learning rate 1e-3
(5e-4 for each 512 images), weight decay 0.05, cosine to 1e-5 after 20 epochs of warm-up, gradients clipped at 5,
stochastic depth 0.2, 0.3 and 0.5, the defaults of the models.

Different: RandAugment drops color jitter 0.4, as timm does where both are on. The large models were trained on
ImageNet-22k and have no recipe here.
"""

from __future__ import annotations

from configs.common import Architecture, digits, imagenet, vision

MIX = {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.25}

ARCHITECTURE = Architecture(
    digits=digits("focalnet_nano", epochs=40, evaluated=4, warmup=3),
    imagenet=imagenet(
        1024,
        1e-3,
        warmup="20 epochs",
        final=0.01,
        rand_augment="rand-m9-mstd0.5-inc1",
        mix=MIX,
        optimizer={"clip_norm": 5.0},
    ),
    variants={
        f"{size}_{levels}": {"model": f"focalnet_{size}_{levels}"}
        for size in ("tiny", "small", "base")
        for levels in ("srf", "lrf")
    },
    default="tiny_srf",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
