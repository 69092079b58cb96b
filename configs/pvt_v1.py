"""PVT (W. Wang et al., ICCV 2021), trained as DeiT (H. Touvron et al., arXiv:2012.12877).

Stochastic depth is that of the variant: 0.3 in the large model and 0.1 in the others.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("pvt_nano", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(),
    variants={name: {"model": f"pvt_{name}"} for name in ("tiny", "small", "medium", "large")},
    default="small",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
