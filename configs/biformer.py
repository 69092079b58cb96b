"""BiFormer (L. Zhu et al., arXiv:2303.08810).

The ImageNet-1k recipe is the paper's (section 4.1), its details from the training arguments in the authors' repository
(rayleizhu/BiFormer: configs/train_args.yaml, main.py and the README's command): 300 epochs at 224 pixels, AdamW, batch
1024, peak learning rate 1e-3 (5e-4 for each 512 images), weight decay 0.05, cosine to 1e-5 after 5 epochs of warm-up,
stochastic depth 0.1, 0.15 and 0.4.

Left out: color jitter 0.4, which timm drops when RandAugment is on; the averaged weights that the authors keep but do
not evaluate; 10 epochs of cool-down at the final learning rate. Not supported: repeated augmentation (an epoch of three
views each of a third of the images).
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("biformer_nano", epochs=40, evaluated=4, warmup=3),
    imagenet=deit(),
    variants={
        "tiny": {"model": "biformer_tiny", "model_options": {"drop_path": 0.1}},
        "small": {"model": "biformer_small", "model_options": {"drop_path": 0.15}},
        "base": {"model": "biformer_base", "model_options": {"drop_path": 0.4}},
    },
    default="tiny",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
