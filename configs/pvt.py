"""PVT v2 (W. Wang et al., arXiv:2106.13797).

The ImageNet-1k recipe is the paper's (section 4.1), its details from the authors' repository (whai362/PVT:
classification/configs/pvt_v2): 300 epochs at 224 pixels, AdamW, batch 1024, peak learning rate 1e-3, weight decay 0.05,
cosine to 1e-5 after 5 epochs of warm-up; stochastic depth 0.1 up to b2 and 0.3 from b3 on, for which gradients are
clipped at 1.

Not supported: repeated augmentation (an epoch of three views each of a third of the images).
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("pvt_v2_nano"),
    imagenet=deit(),
    variants={
        **{size: {"model": f"pvt_v2_{size}"} for size in ("b0", "b1", "b2", "b2_li")},
        **{size: {"model": f"pvt_v2_{size}", "optimizer": {"clip_norm": 1.0}} for size in ("b3", "b4", "b5")},
    },
    default="b0",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
