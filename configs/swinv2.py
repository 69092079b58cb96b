"""Swin Transformer V2 (Z. Liu et al., arXiv:2111.09883).

The ImageNet-1k recipe is Swin's (configs/swin.py) at 256 pixels, as in the authors' repository
(microsoft/Swin-Transformer: configs/swinv2): stochastic depth 0.2, 0.3 and 0.5. Large was pretrained on ImageNet-22k
and has no recipe here.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("swinv2_nano"),
    imagenet=deit(optimizer={"clip_norm": 5.0}),
    variants={
        size: {"model": f"swinv2_{size}_window8_256", "schedule": {"warmup": "20 epochs"}}
        for size in ("tiny", "small", "base")
    },
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
