"""gMLP (H. Liu et al., arXiv:2105.08050).

The ImageNet-1k recipe is DeiT's (H. Touvron et al., arXiv:2012.12877), which is our choice.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("gmlp_nano_patch4_32", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(model_options={"drop_path": 0.1}),
    variants={
        "ti16": {"model": "gmlp_ti16_224"},
        "s16": {"model": "gmlp_s16_224"},
        "b16": {"model": "gmlp_b16_224"},
    },
    default="s16",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
