"""Dynamic programming: Mamba's output gets worse as the problem grows beyond its state; attention has no such limit.

R. Ren et al., arXiv:2410.03810, section 5: to write tables whose entries depend on all entries before them, Mamba needs
a state that grows with the length. The task is the longest increasing subsequence of 8 and of 20 numbers below 32, with
the table written out ("chain of thought"); the models are Mamba of two blocks with states of 4, 16 and 64, and a
transformer trained for as many steps. "exact" is the fraction of tables that are entirely right. The paper trains for
longer, on up to 100 numbers. Medians of three seeds after 2000 steps: from length 8 to 20 Mamba falls from 0.947, 0.955
and 0.957 to 0.607, 0.649 and 0.644 with states of 4, 16 and 64, the transformer from 0.994 to 0.964; it writes 0.51 of
the long tables without an error, Mamba none. A state of 16 or more is better than one of 4, but the ranges of seeds
overlap, and 64 is no better than 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.claims.run import Contest, Contestant, Row, main, medians

PAPER = (124,)
STATES = (4, 16, 64)
LENGTHS = (8, 20)
GAIN = 0.02


def _label(model: str, length: int) -> str:
    return f"{model}, length {length}"


def contest(quick: bool) -> Contest:
    size = {"features": 16 if quick else 64, "depth": 1 if quick else 2}
    states, lengths = (STATES[:1], LENGTHS[:1]) if quick else (STATES, LENGTHS)
    contestants = []
    for length in lengths:
        task: dict[str, Any] = {"name": "dynamic_programming", "length": length, "test_length": length, "values": 32}
        task |= {"num_eval": 16 if quick else 512}
        for state in states:
            options = {**size, "state_dim": state}
            contestants.append(Contestant(_label(f"mamba, state {state}", length), "mamba_nano", task, options))
        # Its MLPs make up for Mamba's wider layers.
        options = {**size, "num_heads": 2 if quick else 4}
        contestants.append(Contestant(_label("transformer", length), "transformer_nano", task, options))
    return Contest(
        contestants=contestants,
        steps=4 if quick else 2000,
        batch_size=8 if quick else 32,
        learning_rate=3e-3,
        evaluations=2 if quick else 4,
        figures=("accuracy", "exact"),
    )


def verdict(rows: Sequence[Row]) -> bool:
    """At every size of the state, Mamba's accuracy falls from the short to the long table; on the long one the largest
    state is better than the smallest by at least 0.02; and from short to long the transformer loses less than the
    smallest state.
    """
    accuracy = medians(rows, "accuracy")
    short, long = LENGTHS

    def lost(model: str) -> float:
        return accuracy[_label(model, short)] - accuracy[_label(model, long)]

    mambas = [f"mamba, state {state}" for state in STATES]
    return (
        all(lost(model) > 0 for model in mambas)
        and accuracy[_label(mambas[-1], long)] >= accuracy[_label(mambas[0], long)] + GAIN
        and lost("transformer") < lost(mambas[0])
    )


def run(arguments: list[str] | None = None) -> None:
    main("dynamic_programming", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
