"""Copying: Mamba needs a state that grows with the string, a transformer does not; mimetic initialisation shortens Mamba's training.

R. Ren et al., arXiv:2410.03810 (COPY needs a size linear in the length), C. Cui et al., arXiv:2406.16168
(the exam of copying), A. Trockman et al., arXiv:2410.11135 (mimetic initialisation). Accuracy of Mamba
against state size and string length, a transformer beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.claims.run import Contest, Contestant, Row, main, medians, steps_to

STATES = (4, 16, 64)
LENGTHS = (16, 64)
LEARNED = 0.9


def contest(quick: bool) -> Contest:
    size = {"features": 16 if quick else 64, "depth": 1 if quick else 2}
    states, lengths = (STATES[:1], (6,)) if quick else (STATES, LENGTHS)

    def task(length: int) -> dict[str, Any]:
        return {"name": "copying", "length": length, "test_length": length, "num_eval": 16 if quick else 256}

    contestants = []
    for length in lengths:
        for state in states:
            for start in ("standard", "mimetic"):
                options = {**size, "state_dim": state, "initialisation": start}
                contestants.append(Contestant(f"mamba, state {state}, {start}, string {length}", "mamba_nano", task(length), options))
        contestants.append(Contestant(f"transformer, string {length}", "transformer_nano", task(length), size))
    return Contest(
        contestants=contestants,
        steps=4 if quick else 2000,
        batch_size=8 if quick else 32,
        learning_rate=3e-3,
        evaluations=2 if quick else 20,
        figures=("accuracy", "exact"),
    )


def verdict(rows: Sequence[Row]) -> bool:
    accuracy = medians(rows, "accuracy")
    longest, small, large = LENGTHS[-1], STATES[0], STATES[-1]

    def mamba(state: int, start: str) -> str:
        return f"mamba, state {state}, {start}, string {longest}"

    grows = max(accuracy[mamba(large, start)] for start in ("standard", "mimetic")) > max(accuracy[mamba(small, start)] for start in ("standard", "mimetic"))
    shorter = steps_to(rows, mamba(large, "mimetic"), "accuracy", LEARNED) < steps_to(rows, mamba(large, "standard"), "accuracy", LEARNED)
    return grows and shorter and accuracy[f"transformer, string {longest}"] >= accuracy[mamba(small, "standard")]


def run(arguments: list[str] | None = None) -> None:
    main("copying", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
