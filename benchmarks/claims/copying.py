"""Copying: Mamba needs a state that grows with the string, a transformer does not; mimetic initialization shortens
Mamba's training.

R. Ren et al., arXiv:2410.03810 (COPY needs a state linear in the length), C. Cui et al., arXiv:2406.16168 (the copying
test), A. Trockman et al., arXiv:2410.11135 (mimetic initialization). The accuracy of Mamba against the size of its
state and the length of the string, compared with a transformer.

Medians of three seeds after 1500 steps: with mimetic initialization strings of 32 are copied with an accuracy of 0.44,
0.74 and 0.74 by states of 1, 4 and 16, and strings of 16 with 0.72, 0.93 and 0.94; with the standard one at best 0.25
and 0.72. The transformer copies both without error by step 500. Between states of 4 and 16 the difference is smaller
than that between seeds: there the figures show how fast a model learns, not what its state can hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.claims.run import Contest, Contestant, Row, main, medians, steps_to

PAPER = (124, 165)
STATES = (1, 4, 16)
LENGTHS = (16, 32)
LEARNED = 0.9


def _label(state: int, start: str, length: int) -> str:
    return f"mamba, state {state}, {start}, string {length}"


def contest(quick: bool) -> Contest:
    size = {"features": 16 if quick else 64, "depth": 1 if quick else 2}
    states, lengths = (STATES[:1], (6,)) if quick else (STATES, LENGTHS)

    def task(length: int) -> dict[str, Any]:
        return {"name": "copying", "length": length, "test_length": length, "num_eval": 16 if quick else 256}

    contestants = []
    for length in lengths:
        for state in states:
            for start in ("standard", "mimetic"):
                options = {**size, "state_dim": state, "initialization": start}
                contestants.append(Contestant(_label(state, start, length), "mamba_nano", task(length), options))
        contestants.append(Contestant(f"transformer, string {length}", "transformer_nano", task(length), size))
    return Contest(
        contestants=contestants,
        steps=4 if quick else 1500,
        batch_size=8 if quick else 32,
        learning_rate=3e-3,
        evaluations=2 if quick else 15,
        figures=("accuracy", "exact"),
    )


def verdict(rows: Sequence[Row]) -> bool:
    """With the better of its two initializations, the largest state copies the long string better than the smallest
    does, and the smallest state copies the short string better than the long one; the largest state reaches 0.9 on the
    short string in fewer steps with mimetic initialization than with the standard one; and the transformer's accuracy
    on the long string is at least that of the smallest state.
    """
    accuracy = medians(rows, "accuracy")
    (small, *_, large), (short, long) = STATES, LENGTHS

    def best(state: int, length: int) -> float:
        return max(accuracy[_label(state, start, length)] for start in ("standard", "mimetic"))

    sooner = steps_to(rows, _label(large, "mimetic", short), "accuracy", LEARNED) < steps_to(
        rows, _label(large, "standard", short), "accuracy", LEARNED
    )
    return (
        best(large, long) > best(small, long)
        and best(small, short) > best(small, long)
        and sooner
        and accuracy[f"transformer, string {long}"] >= best(small, long)
    )


def run(arguments: list[str] | None = None) -> None:
    main("copying", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
