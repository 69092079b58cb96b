"""The Compressive Transformer (Rae et al., 2020, arXiv:1911.05507): all settings are our choice."""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {"model": "compressive_transformer_nano", "optimizer": {"learning_rate": 2e-3}},
        "277m": {"model": "compressive_transformer_277m", "optimizer": {"learning_rate": 2.5e-4}},
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"features": 64, "depth": 2}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
