"""RMT (Q. Fan et al., arXiv:2309.11523).

The ImageNet-1k recipe is DeiT's with a batch of 2048 and a peak learning rate of 2e-3 (5e-4 for each 512 images), which
the authors' logs show (qhfan/RMT: RMT_log; the paper says 1024 and 1e-3): 300 epochs at 224 pixels, AdamW, weight decay
0.05, cosine to 1e-5 after 5 epochs of warm-up, averaged weights, whose figures are the published ones except for tiny;
stochastic depth 0.1, 0.15, 0.4 and 0.5.

Not supported: repeated augmentation (an epoch of three views each of a third of the images).
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("rmt_nano"),
    imagenet=deit(2048, 2e-3, final=0.005, ema=0.99996),
    variants={size: {"model": f"rmt_{size}"} for size in ("tiny", "small", "base", "large")},
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
