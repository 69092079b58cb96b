"""MemMamba (Wang et al., arXiv:2510.03279).

Learning rate, schedule, weight decay and clipping of ``200m`` are the paper's (appendix A.6), which trains 100,000
steps on texts of 8,000 tokens. The nano settings are those of configs/mamba.py, and our choice.
"""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {
            "model": "memmamba_nano",
            "batch_size": 8,
            "train_for": "1000 steps",
            "optimizer": {"learning_rate": 3e-3},
        },
        "200m": {
            "model": "memmamba_200m",
            "optimizer": {"learning_rate": 1e-4},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "train_for": "100000 steps",
        },
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"features": 64, "depth": 2}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
