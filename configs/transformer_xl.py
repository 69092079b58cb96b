"""Transformer-XL (Dai et al., 2019, arXiv:1901.02860): all settings are our choice."""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {"model": "transformer_xl_nano", "optimizer": {"learning_rate": 2e-3}},
        "277m": {"model": "transformer_xl_277m", "optimizer": {"learning_rate": 2.5e-4}},
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"features": 64, "depth": 2}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
