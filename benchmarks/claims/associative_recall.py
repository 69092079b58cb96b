"""Associative recall: with a state of the same size, DeltaNet learns to recall in steps that do not suffice for Mamba-2
and Mamba.

S. Yang et al., arXiv:2406.06484, figure 2, and S. Yang et al., arXiv:2412.06464: a rule that corrects what a key holds
stores more pairs in a state than one that only adds. Multi-query associative recall (S. Arora et al., arXiv:2312.04927)
with two layers of 64 channels; every mixer's state has 2048 numbers a layer. The paper has 64 to 512 tokens and a
vocabulary of 8192; ours are 16 pairs in 64 tokens of 256 and 1000 steps of 16, so that two cores finish in minutes.

What is shown is what the same steps teach, not what a state can hold in the end: below the chance of 1/16 a model has
  not even learned
that answers are among the values shown, and Gated DeltaNet, whose decay starts as Mamba-2's does, is there too.
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
    # Numbers of the state a layer: heads * head_dim * value_dim, or channels * state_dim. Each has its own short
    # convolution, of 4.
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
    """The accuracy of delta_net is above those of mamba and mamba2 by 0.1."""
    accuracy = medians(rows, "accuracy")
    return accuracy["delta_net"] >= max(accuracy["mamba"], accuracy["mamba2"]) + MARGIN


def run(arguments: list[str] | None = None) -> None:
    main("associative_recall", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
