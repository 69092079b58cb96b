"""DependencyViT (M. Ding et al., arXiv:2304.03282).

The ImageNet-1k recipe is DeiT's (H. Touvron et al., arXiv:2012.12877), which is our choice.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("dependencyvit_nano_patch4_32", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(model_options={"drop_path": 0.1}),
    variants={
        name: {"model": f"dependencyvit_{name}_patch16_224"} for name in ("tiny", "small", "lite_tiny", "lite_small")
    },
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
