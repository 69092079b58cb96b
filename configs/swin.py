"""Swin Transformer (Z. Liu et al., arXiv:2103.14030).

The ImageNet-1k recipe is the paper's (section 4.1), its details from the authors' repository
(microsoft/Swin-Transformer: config.py and configs/swin): 300 epochs at 224 pixels, AdamW, batch 1024, peak learning
rate 1e-3, weight decay 0.05, cosine to 1e-5 after 20 epochs of warm-up, gradients clipped at 5, stochastic depth 0.2,
0.3 and 0.5; mixup 0.8, CutMix 1, erasing 0.25, RandAugment of magnitude 9.

Left out: color jitter 0.4, which timm drops when RandAugment is on. Large was pretrained on ImageNet-22k and has no
recipe here.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("swin_nano"),
    imagenet=deit(optimizer={"clip_norm": 5.0}),
    variants={
        size: {"model": f"swin_{size}_patch4_window7_224", "schedule": {"warmup": "20 epochs"}}
        for size in ("tiny", "small", "base")
    },
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
