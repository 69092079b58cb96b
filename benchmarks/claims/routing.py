"""Routing: on the digits, BiFormer's learned routing is at least as good as attending to all regions, and better than
random regions.

Bi-level routing keeps 4 of 16 regions for each region (BiFormer, L. Zhu et al., arXiv:2303.08810). The
contestants differ in nothing but which regions are attended to. The recipe is that of configs/biformer.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.claims.run import Contest, Contestant, Row, main, medians

PAPER = (90,)
DIGITS = {"name": "classification", "dataset": "digits"}


def contest(quick: bool) -> Contest:
    kinds = {"learned, 4 of 16": {}, "all 16": {"topk": (16, 16)}, "random, 4 of 16": {"routing": "random"}}
    settings = {"schedule": {"warmup": "1 steps"}} if quick else {}
    size = {"depths": (1, 1), "stem": (8, 16), "features": (16, 32), "num_heads": (1, 2)} if quick else {}
    return Contest(
        contestants=[
            Contestant(label, "biformer_nano", DIGITS, {**options, **size}, settings)
            for label, options in kinds.items()
        ],
        steps=4 if quick else 808,
        batch_size=64,
        learning_rate=2e-3,
        evaluations=2 if quick else 10,
        figures=("accuracy", "loss"),
        recipe="configs/biformer.py",
    )


def verdict(rows: Sequence[Row]) -> bool:
    """At the smallest number of steps shown, the accuracy of learned routing is at least that of attending to all
    regions and above that of random ones.
    """
    accuracy = medians(rows, "accuracy")
    return (
        accuracy["learned, 4 of 16"] >= accuracy["all 16"]
        and accuracy["learned, 4 of 16"] > accuracy["random, 4 of 16"]
    )


def run(arguments: list[str] | None = None) -> None:
    main("routing", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
