"""Titans' ablation: the memory alone (LMM) predicts bytes best with all its parts, and deep memories better than a
linear one.

A. Behrouz et al., arXiv:2501.00663, section 5.9 (a linear memory in place of a deep one; no convolution, momentum,
forgetting or persistent tokens) and section 5.5 (depths). Bits per byte of held-out text, Python's standard library,
after training on the same bytes in the same order. The paper trains 340M to 760M parameters on 15 to 30 billion tokens;
ours have two layers of 64 channels and read 0.6 million bytes. The parameters of a removed part are not made up for
elsewhere, as in the paper, so the sizes differ as shown. The convolution counts most by far. The medians are in the
paper's order, with differences of 0.02 to 0.05 bits per byte, which is less than the difference between seeds; depth 3
is not better than 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.claims.run import Contest, Contestant, Row, main, medians

PAPER = (51,)
PARTS: dict[str, dict[str, Any]] = {
    "all parts, depth 2": {},
    "no momentum": {"momentum": False},
    "no forgetting": {"forget": False},
    "no convolution": {"conv_size": None},
    "no persistent tokens": {"persistent": 0},
    "linear memory": {"memory_depth": 1},
    "depth 3": {"memory_depth": 3},
}
WHOLE = "all parts, depth 2"


def contest(quick: bool) -> Contest:
    task: dict[str, Any] = {"name": "text", "sequence_length": 256}
    if quick:
        task = {"name": "text", "dataset": {"name": "files", "path": __file__}, "sequence_length": 32}
    parts = dict(list(PARTS.items())[-2:]) if quick else PARTS
    size = {"features": 16, "depth": 1, "num_heads": 2} if quick else {"features": 64, "depth": 2, "num_heads": 2}
    return Contest(
        contestants=[
            Contestant(label, "titans_lmm_nano", task, {**size, **options}, {"optimizer": {"options": {"b2": 0.95}}})
            for label, options in parts.items()
        ],
        steps=4 if quick else 300,
        batch_size=4 if quick else 8,
        learning_rate=3e-3,
        evaluations=1 if quick else 3,
        figures=("bits_per_byte",),
    )


def verdict(rows: Sequence[Row]) -> bool:
    """Removing any part raises bits per byte; a third layer of the memory is not part of the verdict."""
    bits = medians(rows, "bits_per_byte")
    return all(bits[WHOLE] < value for label, value in bits.items() if label not in (WHOLE, "depth 3"))


def run(arguments: list[str] | None = None) -> None:
    main("titans_ablation", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
