"""Mamba-2 (T. Dao, A. Gu, arXiv:2405.21060), trained as Mamba is: the settings are those of configs/mamba.py."""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {
            "model": "mamba2_nano",
            "batch_size": 8,
            "train_for": "1000 steps",
            "optimizer": {"learning_rate": 3e-3},
        },
        "130m": {"model": "mamba2_130m", "optimizer": {"learning_rate": 3e-3}},
        "370m": {"model": "mamba2_370m", "optimizer": {"learning_rate": 1.5e-3}},
        "780m": {"model": "mamba2_780m", "optimizer": {"learning_rate": 1.25e-3}},
        "1.3b": {"model": "mamba2_1.3b", "optimizer": {"learning_rate": 1e-3}},
        "2.7b": {"model": "mamba2_2.7b", "optimizer": {"learning_rate": 8e-4}},
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"features": 64, "depth": 2}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
