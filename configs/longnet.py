"""LongNet (J. Ding et al., arXiv:2307.02486). Its settings are our choice.

The nano's segments reach the 256 tokens of the text: 64 of them at every token, 128 at every second, 256 at every
fourth.
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
