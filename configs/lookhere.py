"""LookHere (A. Fuller et al., arXiv:2405.13985), trained as DeiT III (H. Touvron et al., arXiv:2204.07118).

The published models, with DeiT III's body, were trained for 150 epochs on ImageNet-1k at 224 pixels (README of
GreenCUBIC/lookhere); their other settings are only in the paper. All other settings here are those of DeiT III's recipe
for ImageNet-1k (its table 1): LAMB, batch 2048, peak learning rate 3e-3, weight decay 0.02, cosine after 5 epochs of
warm-up, gradients clipped at 1, mixup 0.8, CutMix 1, no erasing and no label smoothing.

Different: cross-entropy replaces binary cross-entropy, and RandAugment replaces DeiT III's three augmentations;
repeated augmentation is left out.
"""

from __future__ import annotations

from configs.common import Architecture, digits, imagenet, vision

ARCHITECTURE = Architecture(
    digits=digits("lookhere_nano_patch4_32", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=imagenet(
        2048,
        3e-3,
        warmup="5 epochs",
        final=0.0003,
        rand_augment="rand-m9-mstd0.5-inc1",
        mix={"mixup": 0.8, "cutmix": 1.0, "erasing": 0.0},
        train_for="150 epochs",
        optimizer={"name": "lamb", "weight_decay": 0.02, "clip_norm": 1.0},
    ),
    variants={angle: {"model": f"lookhere_{angle}_base_patch16_224"} for angle in ("180", "90", "45")},
    default="180",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
