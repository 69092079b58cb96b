"""Selective copying: Mamba solves it (accuracy of at least 0.99), S4D with the same size does not.

The central claim of Mamba (A. Gu, T. Dao, arXiv:2312.00752, section 4.1, table 1). As there: two layers of 64 channels
and a vocabulary of 16, so that chance is 1/14. The paper has 16 data tokens among 4096 and 400 000 steps of 64 at a
learning rate of 1e-4; ours are 8 among 64 and 3000 steps of 32 at 3e-3, so that two cores finish in minutes. "S4D with
the same size" is the same model with S4D in place of Mamba: once with the same depth and width, which has half the
parameters, and once twice as deep.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.claims.run import Contest, Contestant, Row, main, medians

PAPER = (194,)
S4D = {"mixer": "s4d"}


def contest(quick: bool) -> Contest:
    task = {
        "name": "selective_copying",
        "length": 32 if quick else 64,
        "memorize": 4 if quick else 8,
        "num_eval": 16 if quick else 256,
    }
    size = {"features": 16 if quick else 64, "depth": 1 if quick else 2}
    deeper = {**size, **S4D, "depth": 2 * size["depth"]}
    return Contest(
        contestants=[
            Contestant("mamba", "mamba_nano", task, size),
            Contestant("s4d", "mamba_nano", task, {**size, **S4D}),
            Contestant("s4d, twice as deep", "mamba_nano", task, deeper),
        ],
        steps=4 if quick else 3000,
        batch_size=8 if quick else 32,
        learning_rate=3e-3,
        evaluations=2 if quick else 20,
        figures=("accuracy", "exact"),
    )


def verdict(rows: Sequence[Row]) -> bool:
    """The accuracy of mamba is at least 0.99, and of every other model below 0.9."""
    accuracy = medians(rows, "accuracy")
    return accuracy["mamba"] >= 0.99 and all(value < 0.9 for label, value in accuracy.items() if label != "mamba")


def run(arguments: list[str] | None = None) -> None:
    main("selective_copying", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
