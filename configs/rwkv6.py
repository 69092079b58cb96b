"""RWKV-6 (B. Peng et al., arXiv:2404.05892): weight decay only for matrices; all settings are our choice."""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {
            "model": "rwkv6_nano",
            "batch_size": 8,
            "train_for": "1000 steps",
            "optimizer": {"learning_rate": 2e-3},
        },
        "1.6b": {"model": "rwkv6_1.6b", "optimizer": {"learning_rate": 4e-4, "weight_decay": 0.1}},
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"features": 64, "depth": 2}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
