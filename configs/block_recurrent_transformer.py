"""The Block-Recurrent Transformer (Hutchins et al., 2022, arXiv:2203.07852): all settings are our choice."""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {"model": "block_recurrent_transformer_nano", "optimizer": {"learning_rate": 2e-3}},
        "151m": {"model": "block_recurrent_transformer_151m", "optimizer": {"learning_rate": 1e-3}},
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"features": 64, "depth": 3}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
