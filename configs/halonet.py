"""HaloNet (A. Vaswani et al., arXiv:2103.12731).

The published weights are timm's, whose recipes (a1h, ra2, c1) are known only by name. The ImageNet-1k recipe here is
our choice: that of our ResNets (configs/resnet.py) from T. He et al. (arXiv:1812.01187), at 256 pixels.
"""

from __future__ import annotations

from configs.common import Architecture, bag_of_tricks, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("halonet_nano"),
    imagenet=bag_of_tricks(),
    variants={
        "26t": {"model": "halonet26t"},
        "50ts": {"model": "halonet50ts"},
        "se33ts": {"model": "sehalonet33ts"},
        "eca26ts": {"model": "eca_halonext26ts"},
        "h1": {"model": "halonet_h1"},
    },
    default="26t",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
