"""ResNet (K. He et al., arXiv:1512.03385).

The ImageNet-1k recipe is that of Bag of Tricks (T. He et al., arXiv:1812.01187, sections 2 to 5): SGD with Nesterov
momentum 0.9, batch 1024 at a peak learning rate of 0.4 (0.1 for each 256 images), 5 epochs of warm-up and a cosine to
0, weight decay 1e-4 only on weights, the last norm scale of each block initialized to 0, label smoothing 0.1, mixup 0.2
and therefore 200 epochs, color jitter 0.4.

ECA-Net (Q. Wang et al., arXiv:1910.03151) was trained without most of this: batch 256, learning rate 0.1, divided by 10
after 30, 60 and 90 of 100 epochs, no mixup; here it uses the same recipe as the others.

Left out: noise along the principal components of color, and distillation from a larger model.
"""

from __future__ import annotations

from configs.common import Architecture, bag_of_tricks, digits, vision

_OWN = {"task": {"augment": {"color_jitter": 0.4}}}

ARCHITECTURE = Architecture(
    digits=digits("resnet_nano"),
    imagenet=bag_of_tricks(),
    variants={
        **{size: {"model": f"resnet{size}", **_OWN} for size in ("18", "34", "50", "101", "152", "26d", "50d")},
        **{f"eca_{size}": {"model": f"eca_resnet{size}", **_OWN} for size in ("18_k3577", "50_k3557")},
    },
    default="50",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
