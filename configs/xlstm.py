"""xLSTM (Beck et al., 2024, arXiv:2405.04517): all settings are our choice."""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {
            "model": "xlstm_block_nano",
            "batch_size": 8,
            "train_for": "1000 steps",
            "optimizer": {"learning_rate": 2e-3},
        },
        "7_1_350m": {"model": "xlstm_7_1_350m", "optimizer": {"learning_rate": 4e-4, "weight_decay": 0.1}},
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"features": 64, "depth": 2}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
