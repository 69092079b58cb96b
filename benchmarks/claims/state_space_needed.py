"""State spaces for images: on images MambaOut's gated convolutions are at least as accurate as the same model with
Mamba in their place; where a long sequence must be remembered Mamba is ahead of Mamba without its state space.

W. Yu and X. Wang, arXiv:2405.07992: image classification needs no state space, long-sequence tasks may. On the digits
at 32 x 32 pixels the contestants are mambaout_nano, with maps of 8 x 8 and 4 x 4 tokens, and the same with Mamba read
in both directions, with the same number of parameters within 2 %. The control task is induction heads: in 64 random
symbols, name the one that followed the special symbol when that occurred before. There the contestants are mamba_nano
of two blocks with and without a state space; without it the model sees 6 tokens back through its convolutions, and has
more features, so that the parameters agree within 2 %. Medians of three seeds: on the images both have an accuracy of
0.986; on the sequences Mamba has 0.492, and 0.059, no better than guessing, without its state space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.claims.run import Contest, Contestant, Row, main, medians

PAPER = (238,)


def contest(quick: bool) -> Contest:
    digits = {
        "name": "classification",
        "dataset": "digits",
        "augment": {"fit": "whole", "flip": 0.0, "rotation": 10.0, "translation": 0.08, "zoom": 0.1, "shear": 0.1},
        "label_smoothing": 0.1,
    }
    sizes = {"length": 16 if quick else 64, "shortest_length": 8, "num_eval": 16 if quick else 256}
    heads = {"name": "induction_heads", **sizes}
    images: dict[str, Any] = {"features": (8, 16), "depths": (1, 1)} if quick else {}
    words: dict[str, Any] = {"features": 16, "depth": 1} if quick else {"features": 64, "depth": 2}
    wider = {**words, "features": 18 if quick else 72}
    return Contest(
        contestants=[
            Contestant("images, gated convolution", "mambaout_nano", digits, images),
            Contestant(
                "images, mamba",
                "mambaout_nano",
                digits,
                {**images, "mixer": {"name": "mamba", "expand": 1, "state_dim": 26}},
            ),
            Contestant(
                "sequence, gated convolution",
                "mamba_nano",
                heads,
                {**wider, "mixer": {"name": "mamba", "state_dim": 0}},
            ),
            Contestant("sequence, mamba", "mamba_nano", heads, words),
        ],
        steps=4 if quick else 300,
        batch_size=32,
        learning_rate=2e-3,
        evaluations=2 if quick else 5,
        figures=("accuracy", "loss"),
    )


def verdict(rows: Sequence[Row]) -> bool:
    """On images the accuracy without a state space is at least that with one; on the sequences it is below."""
    accuracy = medians(rows, "accuracy")
    return (
        accuracy["images, gated convolution"] >= accuracy["images, mamba"]
        and accuracy["sequence, gated convolution"] < accuracy["sequence, mamba"]
    )


def run(arguments: list[str] | None = None) -> None:
    main("state_space_needed", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
