"""ViT-ResNAS (Y. Liao et al., arXiv:2109.00642), trained as DeiT (H. Touvron et al., arXiv:2012.12877).

From the authors' scripts/vit-sr-nas/searched_net and main.py: batch 1024 (eight times 128), no repeated augmentation,
averaged weights; stochastic depth is that of the variant. Their token mixup, for which a second head classifies every
token, and models fine-tuned at 280 and 392 pixels are not included.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("vit_resnas_nano", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(ema=0.99996),
    variants={name: {"model": f"vit_resnas_{name}"} for name in ("tiny", "small", "medium")},
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
