"""LongNet (J. Ding et al., arXiv:2307.02486). Its settings are our choice.

The segments of the nano size cover the text's 256 tokens: segments of 64 use every token, those of 128 every second and
those of 256 every fourth.
"""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {"model": "longnet_nano", "optimizer": {"learning_rate": 2e-3}},
        "125m": {"model": "longnet_125m", "optimizer": {"learning_rate": 6e-4}},
        "350m": {"model": "longnet_350m", "optimizer": {"learning_rate": 3e-4}},
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"depth": 2}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
