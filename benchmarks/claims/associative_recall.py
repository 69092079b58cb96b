"""Associative recall: with a state of the same size, DeltaNet learns to recall within a number of steps that is not
enough for Mamba-2 and Mamba.

S. Yang et al., arXiv:2406.06484, figure 2, and S. Yang et al., arXiv:2412.06464: a rule that corrects the value stored
under a key fits more pairs into a state than one that only adds. Multi-query associative recall (S. Arora et al.,
arXiv:2312.04927) with two layers of 64 channels; every mixer's state has 2048 numbers a layer. The paper has 64 to 512
tokens and a vocabulary of 8192; ours are 16 pairs in 64 tokens of a vocabulary of 256, and 1000 steps of 16 sequences,
so that two cores finish in minutes.

The figures show what the same number of steps teaches, not what a state can hold in the end. A model below an accuracy
of 1/16 has not even learned that the answers are among the values shown, and Gated DeltaNet, whose decay is initialized
as in Mamba-2, is there too.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.claims.run import Contest, Contestant, Row, main, medians

PAPER = (179,)
MARGIN = 0.1


def contest(quick: bool) -> Contest:
    length, pairs = (16, 2) if quick else (64, 16)
    task = {"name": "multi_query_recall", "length": length, "test_length": length, "pairs": pairs}
    task |= {"vocab_size": 64 if quick else 256, "num_eval": 16 if quick else 512}
    size = {"features": 16 if quick else 64, "depth": 1 if quick else 2, "num_heads": 2}
    # Size of a layer's state: heads * head_dim * value_dim, or channels * state_dim. Each mixer keeps its own short
    # convolution of 4 taps.
    mamba2 = {"state_dim": 16, "expand": 2, "head_dim": 8 if quick else 64}
    return Contest(
        contestants=[
            Contestant("delta_net", "delta_net_nano", task, {**size, "mlp": None}),
            Contestant("gated_delta_net", "gated_delta_net_nano", task, {**size, "mlp": None}),
            Contestant("mamba2", "mamba2_nano", task, {**size, **mamba2}),
            Contestant("mamba", "mamba_nano", task, {**size, "state_dim": 16, "expand": 2}),
        ],
        steps=4 if quick else 1000,
        batch_size=8 if quick else 16,
        learning_rate=3e-3,
        evaluations=2 if quick else 10,
        figures=("accuracy", "exact"),
    )


def verdict(rows: Sequence[Row]) -> bool:
    """The accuracy of delta_net is above those of mamba and mamba2 by at least 0.1."""
    accuracy = medians(rows, "accuracy")
    return accuracy["delta_net"] >= max(accuracy["mamba"], accuracy["mamba2"]) + MARGIN


def run(arguments: list[str] | None = None) -> None:
    main("associative_recall", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
