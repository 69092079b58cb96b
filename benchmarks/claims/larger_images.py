"""Larger images: a vision transformer with LookHere's directed attention keeps more of its accuracy on images larger
than those that it was trained on than one with rotary or one with learned positions.

A. Fuller et al., arXiv:2405.13985. The contestants are one small transformer, trained on the digits at 32 pixels in
patches of 4, which differs in how it knows where patches are: by fields of view and distances (four heads look to the
corners, four everywhere), by a rotary embedding of rows and columns, or by a table, which is resampled to larger grids.
"rotary, stretched" counts the rows and columns of a larger grid in equal steps on that of training, as EVA-02 does. The
paper's subject is images of more patches without any such change; but these are larger pictures of the same digits, in
which a resampled table is stretched too. "at_n" is the accuracy on the test images enlarged to n pixels, where a digit
has n^2 / 16 patches. The recipe is that of configs/vit.py, for fewer steps; the table makes 3 % more parameters.

Medians of three seeds after 400 steps, at 32, 48, 64 and 96 pixels: LookHere 0.95, 0.88, 0.58 and 0.22; learned
positions 0.84, 0.82, 0.74 and 0.58; the rotary embedding 0.99, 0.10, 0.18 and 0.16, near chance wherever it reaches
rows that it was not trained on; the same weights with stretched positions 0.99, 0.97, 0.96 and 0.92. LookHere keeps
the most at 48 pixels of those that the paper compares, and less than learned positions beyond.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.claims.run import Contest, Contestant, Row, main, medians, of_digits

if TYPE_CHECKING:
    from flax import nnx

PAPER = (164,)
SIDES = (32, 48, 64, 96)
KINDS: dict[str, dict[str, Any]] = {
    "lookhere": {"mixer": {"name": "lookhere", "fields": ("corners", "none")}, "position": None},
    "rotary": {"rotary": 100.0, "position": None},
    "rotary, stretched": {"rotary": {"base": 100.0, "grid": (8, 8)}, "position": None},
    "learned": {"position": "learned"},
}


def accuracy_at(model: nnx.Module, side: int, count: int, batch_size: int = 40) -> float:
    """The share of the first ``count`` test images that the model gets right at ``side`` pixels."""
    import jax
    from flax import nnx

    import tasks
    import zoo

    preprocess = zoo.preprocess(model)
    task = tasks.create("classification", preprocess=preprocess, image_size=side, augment={"fit": "whole"})
    examples = task.examples("test")
    model.eval()
    graph, state = nnx.split(model)
    answer = jax.jit(lambda state, images: nnx.merge(graph, state)(images).argmax(-1))
    right = 0
    for start in range(0, count, batch_size):
        batch = [examples.get(i, None) for i in range(start, start + batch_size)]
        images = task.normalized(np.stack([example["image"] for example in batch]))
        right += int((np.asarray(answer(state, images)) == np.stack([example["label"] for example in batch])).sum())
    return right / count


def contest(quick: bool) -> Contest:
    size = {"features": 32, "depth": 1} if quick else {"features": 64, "depth": 4}
    sides = SIDES[:2] if quick else SIDES

    def measure(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
        return {f"at_{side}": accuracy_at(model, side, 40 if quick else 360) for side in sides}

    return of_digits(
        {label: {**size, "num_heads": 8, "prefix_positions": "none", **options} for label, options in KINDS.items()},
        quick=quick,
        steps=400,
        warmup=40,
        figures=("accuracy", *(f"at_{side}" for side in sides)),
        measure=measure,
    )


def verdict(rows: Sequence[Row]) -> bool:
    """At 64 and at 96 pixels the accuracy with LookHere is above that of all others."""
    return all(
        medians(rows, f"at_{side}")["lookhere"] > medians(rows, f"at_{side}")[other]
        for side in (64, 96)
        for other in KINDS
        if other != "lookhere"
    )


def run(arguments: list[str] | None = None) -> None:
    main("larger_images", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
