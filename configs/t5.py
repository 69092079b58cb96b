"""T5 (Raffel et al., arXiv:1910.10683) on pairs of a source and its target.

The small model's settings are our choice. Those of the released sizes are the paper's for fine-tuning (section 3.1.2):
AdaFactor, a constant learning rate of 1e-3, batches of 128 sequences; its 2^18 steps are not used.
"""

from __future__ import annotations

from configs.common import LanguageArchitecture, sequence_to_sequence

_FINE_TUNED = {
    "batch_size": 128,
    "optimizer": {"name": "adafactor", "learning_rate": 1e-3, "weight_decay": 0.0},
    "schedule": {"name": "constant", "warmup": "0 steps"},
}
_SIZES = ("small", "base", "large", "3b", "11b")

ARCHITECTURE = LanguageArchitecture(
    variants={
        "nano": {"model": "t5_nano", "optimizer": {"learning_rate": 2e-3}},
        **{size: {"model": f"t5_{size}", "model_options": {"vocab_size": 32128}, **_FINE_TUNED} for size in _SIZES},
    },
    task={
        "train_for": "1000 steps",
        "eval_every": "500 steps",
        "save_every": "500 steps",
        "batch_size": 64,
        "model_options": {"features": 64},
    },
)


def get_config(argument: str = ""):
    """Returns the config; the argument is explained in configs/common.py."""
    return sequence_to_sequence(ARCHITECTURE, argument)
