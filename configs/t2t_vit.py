"""T2T-ViT (L. Yuan et al., arXiv:2101.11986), trained as DeiT (H. Touvron et al., arXiv:2012.12877).

The authors' commands use batch 512, a peak learning rate of 5e-4 or 1e-3, and a weight decay of 0.03 to 0.065 depending
on the size. The ImageNet-1k recipe here is that of configs/vit.py, which is our choice.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("t2t_vit_nano", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(model_options={"drop_path": 0.1}),
    variants={"7": {"model": "t2t_vit_7"}, "14": {"model": "t2t_vit_14"}, "t_14": {"model": "t2t_vit_t_14"}},
    default="14",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
