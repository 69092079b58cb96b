"""What mixers are compared on: a task, the backbone for it and a budget, the same for every mixer.

    images   patches -> + positions -> blocks -> norm -> mean -> head        vit_nano_patch4_32, no class token
    tokens   embedding -> + positions -> blocks -> norm -> embedding^T       transformer_nano

Two blocks of a mixer with its default options and an MLP. Positions are a learned table, the same for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from suggestions import unknown

FEATURES, DEPTH, HEADS = 64, 2, 2


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task, the backbone for it, and the budget of a run.

    Attributes:
      about: in a line.
      model: the backbone, a name of ``zoo.list_models()``.
      options: of the backbone, those that the task specifies included.
      width: the backbone's options for an MLP of so many hidden features beside so many features.
      hidden: hidden features of the MLP beside plain attention.
      task: its name and options.
      figure: what is compared, of the test split.
      higher: whether more of it is better.
      steps, batch_size, learning_rate: of every run.
      input_shape: of one input.
    """

    about: str
    model: str
    options: Mapping[str, Any]
    width: Callable[[int, int], dict[str, Any]]
    hidden: int
    task: Mapping[str, Any]
    figure: str
    higher: bool
    steps: int
    batch_size: int
    learning_rate: float
    input_shape: tuple[int, ...]


def _tokens(about: str, vocab_size: int, length: int, task: Mapping[str, Any], **more: Any) -> Problem:
    """A problem of the causal backbone."""
    return Problem(
        about=about,
        model="transformer_nano",
        options={"vocab_size": vocab_size, "position": "learned", "max_length": length, "depth": DEPTH,
            "num_heads": HEADS},
        width=lambda features, hidden: {"features": features, "hidden": hidden},
        hidden=3 * FEATURES,
        task=task,
        input_shape=(length,),
        **{"figure": "accuracy", "higher": True, "learning_rate": 3e-3, **more},
    )  # fmt: skip


_SYNTHETIC = {"num_eval": 512}
PROBLEMS = {
    "digits": Problem(
        about="handwritten digits, 64 patches, 10 classes",
        model="vit_nano_patch4_32",
        options={"class_token": False, "pool": "average", "depth": DEPTH, "num_heads": HEADS, "num_classes": 10},
        # Half a feature more: the backbone rounds down.
        width=lambda features, hidden: {"features": features, "mlp_ratio": (hidden + 0.5) / features},
        hidden=4 * FEATURES,
        task={"name": "classification", "dataset": {"name": "digits"}, "augment": {"fit": "whole", "flip": 0.0}},
        figure="accuracy",
        higher=True,
        steps=800,
        batch_size=32,
        learning_rate=2e-3,
        input_shape=(32, 32, 3),
    ),
    "recall": _tokens(
        "multi-query associative recall, 8 pairs in 32 tokens of 64",
        64,
        32,
        {"name": "multi_query_recall", "length": 32, "test_length": 32, "pairs": 8, "vocab_size": 64, **_SYNTHETIC},
        steps=1000,
        batch_size=32,
    ),
    "copying": _tokens(
        "strings of 24 letters, copied",
        28,
        49,
        {"name": "copying", "length": 24, "test_length": 24, **_SYNTHETIC},
        steps=1000,
        batch_size=32,
    ),
    "bytes": _tokens(
        "Python's standard library, 256 bytes at a time",
        256,
        256,
        {"name": "text", "dataset": {"name": "stdlib"}, "sequence_length": 256},
        figure="bits_per_byte",
        higher=False,
        steps=400,
        batch_size=8,
    ),
}
"""What mixers are compared on."""


def problem(name: str) -> Problem:
    """The problem of a name.

    Raises:
      ValueError: there is none; near ones are given.
    """
    if name not in PROBLEMS:
        raise ValueError(unknown("task to compare on", name, PROBLEMS))
    return PROBLEMS[name]
