"""NiNformer (A. N. Abdullah, T. Aydin, arXiv:2403.02411).

The authors train on CIFAR-10 alone: 100 epochs of Adam at 1e-3, batch 128, dropout 0.5, crops padded by 4 pixels and
flips (Abdullah-88/NiNformer: train.py). The ImageNet-1k recipe is DeiT's (H. Touvron et al., arXiv:2012.12877), which
is our choice.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("ninformer_nano_patch4_32", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(model_options={"num_classes": 1000, "image_size": 224, "patch_size": 16}),
    variants={"cifar": {"model": "ninformer_cifar"}},
    default="cifar",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
