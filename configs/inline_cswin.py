"""InLine attention in CSWin (D. Han et al., arXiv:2412.06590).

The ImageNet-1k recipe is the authors' (LeapLabTHU/InLine: cfgs/inline_cswin_*.yaml, README): 300 epochs at 224 pixels,
AdamW, batch 1024 on eight devices (512 for base), a peak learning rate of 5e-4 for each 512 images, weight decay 0.05
(0.1 for base), cosine to a fiftieth after 20 epochs of warm-up, averaged weights; stochastic depth 0.2, 0.4 and 0.5.

Different: the last 10 epochs at the lowest learning rate are left out. RandAugment drops color jitter 0.4, as timm does
where both are on.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("inline_cswin_nano"),
    imagenet=deit(1024, 1e-3, warmup="20 epochs", final=0.02, ema=0.9999),
    variants={
        "tiny": {"model": "inline_cswin_tiny_224"},
        "small": {"model": "inline_cswin_small_224"},
        "base": {
            "model": "inline_cswin_base_224",
            "batch_size": 512,
            "optimizer": {"learning_rate": 5e-4, "weight_decay": 0.1},
            "ema": 0.99995,
        },
    },
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
