"""Copying: Mamba needs a state that grows with the string, a transformer does not; mimetic initialization shortens
Mamba's training.

R. Ren et al., arXiv:2410.03810 (COPY needs a size linear in the length), C. Cui et al., arXiv:2406.16168
(the exam of copying), A. Trockman et al., arXiv:2410.11135 (mimetic initialization). Accuracy of Mamba
against state size and string length, compared with a transformer.

Medians of three seeds after 1500 steps: from the mimetic start strings of 32 are copied to 0.44, 0.74 and 0.74 with
  states of 1, 4 and 16,
strings of 16 to 0.72, 0.93 and 0.94; from the standard one to 0.25 and 0.72 at best; the transformer copies all of them
by step 500. Between 4 and 16 the difference is less than that of seeds: there what shows is how fast a model learns,
not what its state can hold.
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
    """At their best start, the largest state copies the long string better than the smallest, and the smallest the
    short string better than the long one; the largest state learns the short string to 0.9 in fewer steps from the
    mimetic start; and the transformer's accuracy on the long string is at least that of the smallest state.
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
