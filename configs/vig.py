"""ViG (B. Liao et al., arXiv:2405.18425).

The ImageNet-1k recipe is the authors' (hustvl/ViG: classification/config.py, configs/vig), those of VMamba and Swin:
300 epochs at 224 pixels, AdamW, batch 1024 (128 on each of 8 GPUs), peak learning rate 2e-3 (1e-3 for each 512 images;
for small 1e-3), weight decay 0.05 (0.1 for small), cosine to 5e-6 for each 512 images after 20 epochs of warm-up,
gradients clipped at 5; stochastic depth 0, 0.2 and 0.5.

Different: RandAugment drops color jitter 0.4, as timm does where both are on.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("vig_nano_patch4_32", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(1024, 2e-3, warmup="20 epochs", final=0.005, optimizer={"clip_norm": 5.0}),
    variants={
        "tiny": {"model": "vig_tiny"},
        "small": {
            "model": "vig_small",
            "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1},
            "schedule": {"final": 0.01},
        },
        "base": {"model": "vig_base"},
    },
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
