"""Dynamic programming: what Mamba writes out is worse the longer the problem is beside its state; attention has no such
limit.

R. Ren et al., arXiv:2410.03810, section 5: of tables whose entries follow from all entries before, Mamba's state has to
grow with the length. Longest increasing subsequences of 8 and of 20 numbers below 32, the table written out ("chain of
thought"); Mamba of two blocks with states of 4, 16 and 64, and a transformer of as many steps. "exact" is the part of
tables without a fault. The paper trains for longer, on up to 100 numbers. Seed 0: from length 8 to 20 Mamba falls from
0.70 to 0.42 whatever its state, the transformer from 0.943 to 0.883; in so few steps the state is not what limits
Mamba.
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
        # The MLP makes up for Mamba's wider layers.
        options = {**size, "num_heads": 2 if quick else 4}
        contestants.append(Contestant(_label("transformer", length), "transformer_nano", task, options))
    return Contest(
        contestants=contestants,
        steps=4 if quick else 500,
        batch_size=8 if quick else 32,
        learning_rate=3e-3,
        evaluations=2 if quick else 4,
        figures=("accuracy", "exact"),
    )


def verdict(rows: Sequence[Row]) -> bool:
    """Of every state, accuracy falls from the short to the long table; on the long one the largest state is better than
    the smallest by 0.02; and from short to long the transformer loses less than the smallest state.
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
