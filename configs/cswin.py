"""CSWin (X. Dong et al., arXiv:2107.00652).

The ImageNet-1k recipe is the authors' (microsoft/CSWin-Transformer: README, main.py): 300 epochs at 224 pixels, AdamW,
batch 2048 and peak learning rate 2e-3 (1024 and 1e-3 for base), weight decay 0.05 (0.1 for base), cosine to 1e-5 after
20 epochs of warm-up, averaged weights, stochastic depth 0.2, 0.4 and 0.5. The large models were pretrained on
ImageNet-21k and have no recipe here.

Different: the last 10 epochs at the lowest learning rate are left out. RandAugment drops color jitter 0.4, as timm does
where both are on.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("cswin_nano"),
    imagenet=deit(2048, 2e-3, warmup="20 epochs", final=0.005, ema=0.99984),
    variants={
        "tiny": {"model": "cswin_tiny_224"},
        "small": {"model": "cswin_small_224"},
        "base": {
            "model": "cswin_base_224",
            "batch_size": 1024,
            "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1},
            "schedule": {"final": 0.01},
            "ema": 0.99992,
        },
    },
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
