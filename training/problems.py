"""The problems on which mixers are compared: each a task, a backbone and a budget, the same for every mixer.

    images   patches -> + positions -> blocks -> norm -> mean -> head        vit_nano_patch4_32, no class token
    tokens   embedding -> + positions -> blocks -> norm -> embedding^T       transformer_nano
    whole    embedding -> + positions -> blocks -> norm -> pool -> head      lra_nano

Two blocks, each of a mixer with its default options and an MLP. Positions are learned (in ``lra_nano`` sinusoids), the
same for all mixers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from suggestions import unknown

FEATURES, DEPTH, HEADS = 64, 2, 2


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task, its backbone and the budget of a run.

    Attributes:
      about: a description in one line.
      model: the backbone, a name in ``zoo.list_models()``.
      options: options of the backbone, including those that the task determines.
      width: maps (features, hidden) to the backbone's options for that width and MLP.
      hidden: hidden features of the MLP in the model with plain attention.
      task: name and options of the task.
      figure: the figure on the test split that is compared.
      higher: whether a higher figure is better.
      steps, batch_size, learning_rate: settings of every run.
      input_shape: shape of one input.
      features: features of a token in the model with plain attention.
      recipe: a config file and its argument that define the whole run except the model's options.
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
    features: int = FEATURES
    recipe: str | None = None


def _tokens(about: str, vocab_size: int, length: int, task: Mapping[str, Any], **more: Any) -> Problem:
    """A problem for the causal backbone."""
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
        # Half a feature more, because the backbone rounds down.
        width=lambda features, hidden: {"features": features, "mlp_ratio": (hidden + 0.5) / features},
        hidden=4 * FEATURES,
        task={"name": "classification", "dataset": {"name": "digits"}, "augment": {"fit": "whole", "flip": 0.0}},
        figure="accuracy",
        higher=True,
        steps=800,
        batch_size=16,
        learning_rate=2e-3,
        input_shape=(32, 32, 3),
    ),
    "recall": _tokens(
        "multi-query associative recall, 4 pairs in 16 tokens of 32",
        32,
        16,
        {"name": "multi_query_recall", "length": 16, "test_length": 16, "pairs": 4, "vocab_size": 32, **_SYNTHETIC},
        steps=2000,  # plain attention finds how to look back after about 1000
        batch_size=32,
        learning_rate=2e-3,
    ),
    "copying": _tokens(
        "strings of 16 letters, copied",
        28,
        33,
        {"name": "copying", "length": 16, "test_length": 16, **_SYNTHETIC},
        steps=1000,
        batch_size=16,
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
"""The default problems, by name."""


def _whole(about: str, dataset: Mapping[str, Any], length: int, classes: int, steps: int, **options: Any) -> Problem:
    """A small problem for the encoder that classifies whole sequences."""
    symbols = {"listops": 15}.get(dataset["name"], 256)
    first = options.get("pool", "token") == "token"
    sizes = {"vocab_size": symbols + 1 + first, "num_classes": classes, "max_length": length + first}
    return Problem(
        about=about,
        model="lra_nano",
        options={**sizes, "depth": DEPTH, "num_heads": HEADS, "head_hidden": 2 * FEATURES, **options},
        # Half a feature more, because the backbone rounds down.
        width=lambda features, hidden: {"features": features, "mlp_ratio": (hidden + 0.5) / features},
        hidden=3 * FEATURES,
        task={"name": "sequence_classification", "dataset": dict(dataset), "class_token": first},
        figure="accuracy",
        higher=True,
        steps=steps,
        batch_size=32,
        learning_rate=2e-3,
        input_shape=(length + first,),
    )


_HELD_OUT = {"num_validation": 256, "num_test": 1024}
LONG_RANGE = {
    "listops": _whole(
        "ListOps, up to 96 tokens, depth 4",
        {"name": "listops", "length": 96, "shortest": 10, "max_depth": 4, **_HELD_OUT},
        length=96,
        classes=10,
        steps=400,
    ),
    "pixels": _whole(
        "handwritten digits, 64 pixels one after the other",
        {"name": "images", "images": {"name": "digits"}, "size": 8},
        length=64,
        classes=10,
        steps=600,
        pool="average",
    ),
    "pathfinder": _whole(
        "Pathfinder, 12 x 12 pixels, paths of 3 dashes",
        # Few images, because drawing one takes as long as training on it.
        {"name": "pathfinder", "size": 12, "dashes": 3, "num_train": 8000, "cache": "~/.cache/mixer_zoo", **_HELD_OUT},
        length=144,
        classes=2,
        steps=400,
        pool="average",
    ),
}
"""The small form of Long Range Arena, for machines without an accelerator."""


def _paper(part: str, model: str, sizes: tuple[int, int, int], steps: int, batch_size: int, rate: float) -> Problem:
    """A part of Long Range Arena as in the paper; ``sizes`` are (length, features, hidden) of the authors'
    Transformer.
    """
    length, features, hidden = sizes
    return Problem(
        about=f"Long Range Arena, {part}",
        model=model,
        options={"head_hidden": hidden},
        width=lambda features, hidden: {"features": features, "mlp_ratio": (hidden + 0.5) / features},
        hidden=hidden,
        task={"name": "long_range_arena", "part": part},
        figure="accuracy",
        higher=True,
        steps=steps,
        batch_size=batch_size,
        learning_rate=rate,
        input_shape=(length,),
        features=features,
        recipe=f"configs/long_range_arena.py:{part}",
    )


LONG_RANGE_PAPER = {
    f"paper_{part}": _paper(part, *rest)
    for part, *rest in (
        ("listops", "lra_listops", (2000, 512, 1024), 5000, 32, 0.05 / 1000**0.5),
        ("text", "lra_text", (1001, 256, 1024), 20_000, 32, 0.05 / 8000**0.5),
        ("image", "lra_image", (1025, 128, 128), 35_000, 256, 5e-4),
        ("pathfinder", "lra_pathfinder", (1024, 32, 32), 62_400, 512, 1e-3),
        ("path_x", "lra_pathfinder_128", (16384, 32, 32), 500_000, 64, 1e-3),
    )
}
"""Long Range Arena as in the paper, for accelerators. Retrieval is missing, because its model compares two sequences,
so that one input has no cost; its config trains it.
"""


def problem(name: str) -> Problem:
    """The problem with a name.

    Raises:
      ValueError: there is none; the message suggests similar names.
    """
    known = {**PROBLEMS, **LONG_RANGE, **LONG_RANGE_PAPER}
    if name not in known:
        raise ValueError(unknown("task to compare on", name, known))
    return known[name]
