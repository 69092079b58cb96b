"""RWKV-7 (B. Peng et al., arXiv:2503.14456): weight decay only for matrices; all settings are our choice."""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {
            "model": "rwkv7_nano",
            "batch_size": 8,
            "train_for": "1000 steps",
            "optimizer": {"learning_rate": 2e-3},
        },
        "0.1b": {"model": "rwkv7_0.1b", "optimizer": {"learning_rate": 6e-4, "weight_decay": 0.1}},
        "0.4b": {"model": "rwkv7_0.4b", "optimizer": {"learning_rate": 5e-4, "weight_decay": 0.1}},
        "1.5b": {"model": "rwkv7_1.5b", "optimizer": {"learning_rate": 4e-4, "weight_decay": 0.1}},
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"features": 64, "depth": 2}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
