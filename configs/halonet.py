"""HaloNet (A. Vaswani et al., arXiv:2103.12731).

The published weights are timm's, whose recipes (a1h, ra2, c1) are given by name alone. The ImageNet-1k recipe here is
our choice: that of our ResNets (configs/resnet.py), of T. He et al. (arXiv:1812.01187), at 256 pixels.
"""

from __future__ import annotations

from configs.common import Architecture, imagenet, vision

ARCHITECTURE = Architecture(
    digits={
        "model": "halonet_nano",
        "train_for": "30 epochs",
        "eval_every": "5 epochs",
        "optimizer": {"learning_rate": 2e-3},
        "schedule": {"warmup": "2 epochs"},
    },
    imagenet=imagenet(
        1024,
        0.4,
        warmup="5 epochs",
        final=0.0,
        rand_augment="",
        mix={"mixup": 0.2},
        train_for="200 epochs",
        optimizer={"name": "sgd", "weight_decay": 1e-4, "options": {"momentum": 0.9, "nesterov": True}},
        model_options={"zero_init": True},
    ),
    variants={
        "26t": {"model": "halonet26t"},
        "50ts": {"model": "halonet50ts"},
        "se33ts": {"model": "sehalonet33ts"},
        "eca26ts": {"model": "eca_halonext26ts"},
        "h1": {"model": "halonet_h1"},
    },
    default="26t",
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return vision(ARCHITECTURE, argument)
