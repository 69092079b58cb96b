"""TransNeXt (D. Shi, arXiv:2311.17132) and MoH-TransNeXt (P. Jin et al., arXiv:2410.11842), trained as DeiT (H. Touvron
et al., arXiv:2012.12877).

From the authors' classification/main.py and configs/: batch 1024 (eight times 128), peak learning rate 1e-3, gradients
clipped at 1. Stochastic depth is that of the variant. Models at 384 pixels are fine-tuned and have no recipe here.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

_NAMES = ("transnext_micro", "transnext_tiny", "transnext_small", "transnext_base")
_MIXED = ("moh_transnext_small_75", "moh_transnext_small_80", "moh_transnext_base_50", "moh_transnext_base_75")

ARCHITECTURE = Architecture(
    digits=digits("transnext_nano", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(optimizer={"clip_norm": 1.0}),
    variants={name.removeprefix("transnext_"): {"model": name} for name in (*_NAMES, *_MIXED)},
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
