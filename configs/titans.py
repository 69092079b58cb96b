"""Titans (A. Behrouz et al., arXiv:2501.00663).

The learning rate of the paper's sizes and the weight decay are those of section 5.1, which assume half a million tokens
a step and training sequences of 4096 tokens. The nano settings are our choice.
"""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

JOINED = ("mac", "mag", "mal", "lmm")
MINUTES = {"batch_size": 8, "train_for": "1000 steps", "optimizer": {"learning_rate": 3e-3}}
SIZES = ("170m", "340m", "400m", "760m")

ARCHITECTURE = LanguageArchitecture(
    variants={f"{joined}_nano": {"model": f"titans_{joined}_nano", **MINUTES} for joined in JOINED}
    | {
        f"{joined}_{size}": {"model": f"titans_{joined}_{size}", "optimizer": {"learning_rate": 4e-4}}
        for joined in JOINED
        for size in SIZES
    },
    default="mac_nano",
    task={"optimizer": {"learning_rate": 3e-3}, "model_options": {"features": 64, "depth": 2, "num_heads": 2}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
