"""Llama and similar decoders (zoo/language/llama.py). The nano settings are our choice.

The learning rates of the released sizes are those of their papers (TinyLlama, arXiv:2401.02385; Llama 3,
arXiv:2407.21783, table 3), for batches of millions of tokens.
"""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {"model": "llama_nano", "optimizer": {"learning_rate": 2e-3}},
        "tinyllama_1.1b": {"model": "tinyllama_1.1b", "optimizer": {"learning_rate": 4e-4}},
        "llama3.1_8b": {"model": "llama3.1_8b", "optimizer": {"learning_rate": 3e-4}},
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"depth": 2}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
