"""Landmark attention (Mohtashami and Jaggi, arXiv:2305.16300) as the authors' command trains it on PG-19: AdamW with a
learning rate of 2e-3, b2 0.95 and a weight decay of 1e-3, 240,000 batches of 128. Their LLaMA was fine-tuned for 15,000
steps of 128 texts of 512 tokens, with a learning rate of 2e-5 and 3 % of warm-up. The nano settings are our choice.
"""

from __future__ import annotations

from configs.common import LanguageArchitecture, language

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {"model": "landmark_nano", "optimizer": {"learning_rate": 2e-3}},
        "200m": {
            "model": "landmark_200m",
            "batch_size": 128,
            "train_for": "240000 steps",
            "optimizer": {"learning_rate": 2e-3, "weight_decay": 1e-3},
            "schedule": {"warmup": "4800 steps", "final": 0.1},
        },
        "llama_7b": {
            "model": "landmark_llama_7b",
            "batch_size": 128,
            "train_for": "15000 steps",
            "optimizer": {"learning_rate": 2e-5, "weight_decay": 0.1},
            "schedule": {"warmup": "450 steps", "final": 0.1},
        },
    },
    task={"optimizer": {"learning_rate": 1e-3}, "model_options": {"depth": 2}},
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return language(ARCHITECTURE, argument)
