"""ViG-H (B. Liao et al., arXiv:2405.18425).

The ImageNet-1k recipe is the authors' (hustvl/ViG: classification/config.py, configs/vig-h): 300 epochs at 224 pixels,
AdamW, batch 1024 (128 on each of 8 GPUs), peak learning rate 1e-3 (5e-4 for each 512 images; 1.6e-3 for tiny), weight
decay 0.05, cosine to 5e-6 for each 512 images after 20 epochs of warm-up, gradients clipped at 5; stochastic depth 0.2,
0.3 and 0.6.

Different: RandAugment drops color jitter 0.4, as timm does where both are on.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("vig_h_nano", epochs=30, learning_rate=2e-3, warmup=2),
    imagenet=deit(1024, 1e-3, warmup="20 epochs", final=0.01, optimizer={"clip_norm": 5.0}),
    variants={
        "tiny": {"model": "vig_h_tiny", "optimizer": {"learning_rate": 1.6e-3}, "schedule": {"final": 0.00625}},
        "small": {"model": "vig_h_small"},
        "base": {"model": "vig_h_base"},
    },
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
