"""Vision Transformer (A. Dosovitskiy et al., arXiv:2010.11929), trained as DeiT (H. Touvron et al., arXiv:2012.12877).

The ImageNet-1k recipe is table 9 of DeiT, its details from the arguments in the authors' repository
(facebookresearch/deit: main.py): 300 epochs at 224 pixels, AdamW, batch 1024, peak learning rate 1e-3 (5e-4 for each
512 images), weight decay 0.05, cosine to 1e-5 after 5 epochs of warm-up, stochastic depth 0.1 for every size.

Left out: color jitter 0.4, which timm drops when RandAugment is on; the averaged weights that the authors keep but do
not evaluate; 10 epochs of cool-down at the final learning rate. Not supported: repeated augmentation (an epoch of three
views each of a third of the images).
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("vit_nano_patch4_32", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(model_options={"drop_path": 0.1}),
    variants={
        "tiny": {"model": "vit_tiny_patch16_224"},
        "small": {"model": "vit_small_patch16_224"},
        "base": {"model": "vit_base_patch16_224"},
    },
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
