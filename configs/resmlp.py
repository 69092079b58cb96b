"""ResMLP (H. Touvron et al., arXiv:2105.03404).

The ImageNet-1k recipe is DeiT's (H. Touvron et al., arXiv:2012.12877), which is our choice.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("resmlp_nano_patch4_32", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(model_options={"drop_path": 0.1}),
    variants={
        "12": {"model": "resmlp_12_224"},
        "24": {"model": "resmlp_24_224"},
        "36": {"model": "resmlp_36_224"},
    },
    default="12",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
