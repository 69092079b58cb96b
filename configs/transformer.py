"""The baseline decoder (zoo/language/transformer.py). Its settings are our choice.

The learning rates of the large sizes are those of GPT-3 (T. Brown et al., arXiv:2005.14165, table 2.1) for models of
their size, which assume half a million tokens a step.
"""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {"model": "transformer_nano", "optimizer": {"learning_rate": 2e-3}},
        "130m": {"model": "transformer_130m", "optimizer": {"learning_rate": 6e-4}},
        "370m": {"model": "transformer_370m", "optimizer": {"learning_rate": 3e-4}},
        "1.3b": {"model": "transformer_1.3b", "optimizer": {"learning_rate": 2e-4}},
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"depth": 2}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
