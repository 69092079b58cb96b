"""Kimi Linear (Kimi Team, 2025, arXiv:2510.26692): all settings are our choice."""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {
            "model": "kimi_linear_nano",
            "batch_size": 8,
            "train_for": "1000 steps",
            "optimizer": {"learning_rate": 2e-3},
        },
        "experts_nano": {
            "model": "kimi_linear_experts_nano",
            "batch_size": 8,
            "train_for": "1000 steps",
            "optimizer": {"learning_rate": 2e-3},
        },
        "1.3b": {"model": "kimi_linear_1.3b", "optimizer": {"learning_rate": 4e-4, "weight_decay": 0.1}},
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"features": 64, "depth": 4}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
