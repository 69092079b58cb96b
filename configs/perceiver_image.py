"""Perceiver IO on images (A. Jaegle et al., arXiv:2107.14795).

The ImageNet-1k recipe is DeiT's (H. Touvron et al., arXiv:2012.12877), which is our choice: the authors train with LAMB
and a learning rate that stays constant for the first half.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("perceiver_image_nano", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(),
    variants={kind: {"model": f"perceiver_image_{kind}"} for kind in ("learned", "fourier", "conv")},
    default="fourier",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
