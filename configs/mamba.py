"""Mamba (A. Gu, T. Dao, arXiv:2312.00752).

The learning rates of the released sizes are the paper's (appendix E.2): five times those of GPT-3 for models of their
size, which assume half a million tokens a step. The recall tasks use the paper's model size for them: two layers of 64
channels.
"""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {
            "model": "mamba_nano",
            "batch_size": 8,
            "train_for": "1000 steps",
            "optimizer": {"learning_rate": 3e-3},
        },
        "130m": {"model": "mamba_130m", "optimizer": {"learning_rate": 3e-3}},
        "370m": {"model": "mamba_370m", "optimizer": {"learning_rate": 1.5e-3}},
        "790m": {"model": "mamba_790m", "optimizer": {"learning_rate": 1.25e-3}},
        "1.4b": {"model": "mamba_1.4b", "optimizer": {"learning_rate": 1e-3}},
        "2.8b": {"model": "mamba_2.8b", "optimizer": {"learning_rate": 8e-4}},
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"features": 64, "depth": 2}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
