"""The claim on larger images is judged as it says, on images of the sizes that it names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flax import nnx

import tasks
from benchmarks.claims import larger_images
from zoo.preprocessing import Preprocess

PREPROCESS = Preprocess(image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_larger_images_are_judged_at_both_sizes() -> None:
    def judged(**far: float) -> bool:
        found = {"rotary": 0.5, "learned": 0.6, **far}
        rows = [
            {"label": label, "seed": 0, "test": {"at_64": value, "at_96": value / 2}} for label, value in found.items()
        ]
        return larger_images.verdict(rows)

    assert judged(lookhere=0.7)
    assert not judged(lookhere=0.55)
    assert not judged(lookhere=0.7, rotary=0.8)


@pytest.mark.parametrize("side", [32, 48])
def test_images_are_enlarged(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who answers by the size of what it sees is right as often as there are such digits."""

    class BySize(nnx.Module):
        def __call__(self, images: Any) -> Any:
            return np.eye(10, dtype=np.float32)[np.full(len(images), images.shape[1] // 16)]

    monkeypatch.setattr("zoo.preprocess", lambda model: PREPROCESS)
    examples = tasks.create("classification", preprocess=PREPROCESS).examples("test")
    labels = [int(examples.get(i, None)["label"]) for i in range(40)]
    assert larger_images.accuracy_at(BySize(), side, 40) == labels.count(side // 16) / 40
