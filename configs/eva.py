"""EVA-02 (Y. Fang et al., arXiv:2303.11331), trained as DeiT (H. Touvron et al., arXiv:2012.12877).

The authors pre-train on image features of EVA-CLIP and then fine-tune, which is not supported. The ImageNet-1k recipe
is that of configs/vit.py, which is our choice.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("eva02_nano_patch4_32", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(model_options={"drop_path": 0.1}),
    variants={
        "tiny": {"model": "eva02_tiny_patch14_224", "model_options": {"num_classes": 1000}},
        "small": {"model": "eva02_small_patch14_224", "model_options": {"num_classes": 1000}},
    },
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
