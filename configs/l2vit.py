"""L2ViT (C. Zheng, arXiv:2501.16182).

The ImageNet-1k recipe is the authors' command and its defaults (ChuanyangZheng/L2ViT: readme, main.py), those of
ConvNeXt: 300 epochs at 224 pixels, AdamW, batch 4096, peak learning rate 4e-3, weight decay 0.05, cosine to 1e-6 after
20 epochs of warm-up, averaged weights; stochastic depth 0.3 for base; for the other sizes it is our choice.

Different: RandAugment drops color jitter 0.4, as timm does where both are on.
"""

from __future__ import annotations

from configs.common import Architecture, imagenet, vision

ARCHITECTURE = Architecture(
    digits={
        "model": "l2vit_nano",
        "train_for": "30 epochs",
        "eval_every": "5 epochs",
        "optimizer": {"learning_rate": 2e-3},
        "schedule": {"warmup": "2 epochs"},
    },
    imagenet=imagenet(
        4096,
        4e-3,
        warmup="20 epochs",
        final=0.00025,
        rand_augment="rand-m9-mstd0.5-inc1",
        mix={"mixup": 0.8, "cutmix": 1.0, "erasing": 0.25},
        ema=0.9999,
    ),
    variants={size: {"model": f"l2vit_{size}"} for size in ("tiny", "small", "base")},
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
