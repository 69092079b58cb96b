"""ViR (A. Hatamizadeh et al., arXiv:2310.19731).

The ImageNet-1k recipe is DeiT's (H. Touvron et al., arXiv:2012.12877), which is our choice: the authors' command has a
stochastic depth of 0.2, a weight decay of 0.05 and a peak learning rate of 5e-3, but not the number of GPUs.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("vir_nano_patch4_32", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(model_options={"drop_path": 0.2}),
    variants={
        "small": {"model": "vir_small_patch16_224"},
        "base": {"model": "vir_base_patch16_224"},
        "large": {"model": "vir_large_patch16_224"},
    },
    default="small",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
