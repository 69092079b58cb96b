"""CaiT (H. Touvron et al., arXiv:2103.17239), trained as DeiT (H. Touvron et al., arXiv:2012.12877).

The authors train for 400 epochs, with the same stochastic depth in all blocks; its rates here are our choice. The
released weights are also distilled, and those for larger images fine-tuned; both are left out here.
"""

from __future__ import annotations

from configs.common import Architecture, deit, digits, vision

ARCHITECTURE = Architecture(
    digits=digits("cait_nano_32", epochs=60, learning_rate=1e-3, warmup=5),
    imagenet=deit(train_for="400 epochs"),
    variants={
        "xxs24": {"model": "cait_xxs24_224", "model_options": {"drop_path": 0.05}},
        "xxs36": {"model": "cait_xxs36_224", "model_options": {"drop_path": 0.1}},
        "s24": {"model": "cait_s24_224", "model_options": {"drop_path": 0.1}},
    },
    default="xxs24",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
