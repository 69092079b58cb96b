"""GPT-2 (Radford et al., 2019). Its settings are our choice, as the paper states none.

The learning rates of the released sizes are those of GPT-3 (T. Brown et al., arXiv:2005.14165, table 2.1) for models of
their size, which assume half a million tokens a step.
"""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {"model": "gpt2_nano", "optimizer": {"learning_rate": 2e-3}},
        "small": {"model": "gpt2", "optimizer": {"learning_rate": 6e-4}},
        "medium": {"model": "gpt2_medium", "optimizer": {"learning_rate": 3e-4}},
        "large": {"model": "gpt2_large", "optimizer": {"learning_rate": 2.5e-4}},
        "xl": {"model": "gpt2_xl", "optimizer": {"learning_rate": 2e-4}},
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"depth": 2}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
