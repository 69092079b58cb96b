"""RAVLT (Q. Fan et al., arXiv:2411.07635).

The ImageNet-1k recipe is the authors' command and its defaults (qhfan/RALA: run.sh, main.py), those of RMT, which are
DeiT's: 300 epochs at 224 pixels, AdamW, peak learning rate 5e-4 for each 512 images, weight decay 0.05, cosine to 1e-5
after 5 epochs of warm-up; a batch of 1024 where the command leaves it to the number of devices; stochastic depth 0.1,
0.15, 0.4 and 0.55, as in the models.

Not supported: repeated augmentation (an epoch of three views each of a third of the images).
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("ravlt_nano"),
    imagenet=deit(),
    variants={size: {"model": f"ravlt_{size}"} for size in ("tiny", "small", "base", "large")},
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
