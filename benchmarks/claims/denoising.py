"""Denoising first: a transformer pretrained by denoising the task's own sequences is nearly as good as S4D; trained
from scratch it is not.

I. Amos et al., arXiv:2310.02980: after pretraining by denoising on the task's own sequences, most of the difference
between architectures on Long Range Arena is gone. Encoders of two blocks and 64 features classify handwritten digits
read pixel by pixel (64 numbers): a transformer and S4D with as many parameters, from scratch, and after half of the
steps were spent on predicting half of the pixels from the others. All runs have the same total number of steps. The
paper's models have 6 blocks of 512 features and lengths from 1000 on. Medians of three seeds: denoising first costs the
transformer 0.13 and S4D 0.08 of the accuracy reached when all steps go to the task (0.925 and 0.978). With so little
data and so few steps it does not pay off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.claims.run import Contest, Contestant, Row, main, medians

PAPER = (202,)
SIDE = 8
# MLP ratios that give both the same number of parameters.
MIXERS: dict[str, tuple[str, float]] = {"transformer": ("attention", 3.0), "s4d": ("s4d", 2.5)}


def contest(quick: bool) -> Contest:
    task: dict[str, Any] = {
        "name": "sequence_classification", "inputs": "linear", "class_token": False,
        "dataset": {"name": "images", "images": {"name": "digits"}, "size": SIDE},
    }  # fmt: skip
    before = {"name": "denoising", "of": task, "kind": "masked", "rate": 0.5, "replace": "mask"}
    size = {"features": 16 if quick else 64, "depth": 1 if quick else 2, "num_heads": 2, "pool": "average"}
    size |= {"max_length": SIDE**2, "head_hidden": 32 if quick else 128}
    contestants = []
    for label, (mixer, ratio) in MIXERS.items():
        options = {**size, "mixer": mixer, "mlp_ratio": ratio}
        contestants.append(Contestant(f"{label}, from scratch", "lra_nano", task, options))
        contestants.append(Contestant(f"{label}, denoised first", "lra_nano", task, options, before=before))
    return Contest(
        contestants=contestants,
        steps=4 if quick else 600,
        batch_size=8 if quick else 32,
        learning_rate=2e-3,
        evaluations=2 if quick else 5,
        figures=("accuracy", "loss"),
    )


def verdict(rows: Sequence[Row]) -> bool:
    """Denoising first raises the transformer's accuracy, by more than S4D's, and shrinks the difference between the two
    to less than half.
    """
    accuracy = medians(rows, "accuracy")
    scratch, first = (
        {label: accuracy[f"{label}, {how}"] for label in MIXERS} for how in ("from scratch", "denoised first")
    )
    gained = {label: first[label] - scratch[label] for label in MIXERS}
    before, after = (abs(figures["s4d"] - figures["transformer"]) for figures in (scratch, first))
    return gained["transformer"] > max(gained["s4d"], 0) and after < before / 2


def run(arguments: list[str] | None = None) -> None:
    main("denoising", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
