"""The verdicts of the claims on vision models follow their docstrings; images have the stated sizes, and ranks and
operations agree with their definitions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flax import nnx

import tasks
import zoo
from benchmarks.claims import (
    agents,
    distance_decay,
    larger_images,
    predicted_connectivity,
    rank_augmented,
    state_space_needed,
)
from layers.state import parameter_count
from zoo.preprocessing import Preprocess

PREPROCESS = Preprocess(image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_larger_images_are_judged_at_both_sizes() -> None:
    def judged(**far: float) -> bool:
        found = {"rotary": 0.5, "rotary, stretched": 0.4, "learned": 0.6, **far}
        rows = [
            {"label": label, "seed": 0, "test": {"at_64": value, "at_96": value / 2}} for label, value in found.items()
        ]
        return larger_images.verdict(rows)

    assert judged(lookhere=0.7)
    assert not judged(lookhere=0.55)
    assert not judged(lookhere=0.7, rotary=0.8)
    assert not judged(lookhere=0.7, **{"rotary, stretched": 0.8})


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


def rows(**figures: dict[str, float]) -> list[dict[str, Any]]:
    """Rows of one seed, by what each figure is for each label."""
    labels = next(iter(figures.values()))
    return [
        {"label": label, "seed": 0, "test": {name: values[label] for name, values in figures.items()}}
        for label in labels
    ]


def test_a_distance_must_be_better_than_both_controls() -> None:
    def judged(best: float) -> bool:
        return distance_decay.verdict(rows(accuracy={"rows and columns": best, "row-major order": 0.8, "none": 0.7}))

    assert judged(0.9)
    assert not judged(0.8)
    assert not judged(0.75)


def test_agents_are_judged_by_accuracy_and_time() -> None:
    def judged(agent: float, time: float) -> bool:
        accuracy = {"softmax": 0.9, "agent": agent, "linear": 0.85}
        return agents.verdict(rows(accuracy=accuracy, forward_1024={"softmax": 9.0, "agent": time, "linear": 1.0}))

    assert judged(0.895, 8.0)
    assert not judged(0.88, 8.0), "less than softmax attention"
    assert not judged(0.895, 10.0), "slower"
    assert not judged(0.85, 8.0), "no better than linear attention"


def test_ranks_are_judged_with_accuracies() -> None:
    def judged(rala: float, rank: float, linear: float = 20.0) -> bool:
        return rank_augmented.verdict(
            rows(
                accuracy={"softmax": 0.9, "linear": 0.8, "rala": rala},
                rank={"softmax": 40.0, "linear": linear, "rala": rank},
            )
        )

    assert judged(0.9, 37.0)
    assert not judged(0.9, 35.0)
    assert not judged(0.88, 37.0)
    assert not judged(0.9, 60.0, linear=41.0)


def test_predictions_are_judged_by_accuracy_and_operations() -> None:
    def judged(predicted: float, near: float = 0.85, million: float = 1.0) -> bool:
        accuracy = {"predicted": predicted, "nearest": near, "random": 0.8, "all": 0.9}
        return predicted_connectivity.verdict(
            rows(accuracy=accuracy, million={"predicted": million, "nearest": 0.5, "random": 0.5, "all": 2.0})
        )

    assert judged(0.895)
    assert not judged(0.88)
    assert not judged(0.895, near=0.9)
    assert not judged(0.895, million=2.5)


def test_a_state_space_is_needed_for_the_sequence_alone() -> None:
    def judged(image: float, sequence: float) -> bool:
        accuracy = {
            "images, gated convolution": image, "images, mamba": 0.9,
            "sequence, gated convolution": sequence, "sequence, mamba": 0.9,
        }  # fmt: skip
        return state_space_needed.verdict(rows(accuracy=accuracy))

    assert judged(0.9, 0.2)
    assert not judged(0.89, 0.2)
    assert not judged(0.9, 0.9)


@pytest.mark.full
@pytest.mark.parametrize("claim", [agents, distance_decay, predicted_connectivity, rank_augmented, state_space_needed])
def test_contestants_are_of_one_size(claim: Any) -> None:
    sizes: dict[str, list[int]] = {}
    for c in claim.contest(False).contestants:
        made = nnx.eval_shape(lambda c=c: zoo.create(c.model, **c.options))
        kind = c.label.partition(",")[0] if claim is state_space_needed else ""
        sizes.setdefault(kind, []).append(parameter_count(made))
    assert all(max(of) <= 1.02 * min(of) for of in sizes.values())


class Fixed(nnx.Module):
    """A mixer of x that leaves so many features of it."""

    def __init__(self, kept: int):
        self.kept = kept

    def __call__(self, x: Any, tokens: Any = None) -> Any:
        return x * (np.arange(x.shape[-1]) < self.kept)


@pytest.mark.parametrize("mixer", ["attention", "rala"])
def test_ranks_are_those_of_what_mixers_give(mixer: str) -> None:
    sizes = {"image_size": 8, "patch_size": 1, "features": 16, "depth": 2, "num_heads": 2, "class_token": False}
    model: Any = zoo.create("vit_nano_patch4_32", pool="average", mixer=mixer, **sizes)
    model.blocks[0].mixer, model.blocks[1].mixer = Fixed(3), Fixed(5)
    images = np.random.default_rng(0).standard_normal((3, 8, 8, 3)).astype(np.float32)
    found = rank_augmented.ranks(model, images)
    assert found.tolist() == [[3, 3, 3], [5, 5, 5]]


def test_operations_of_connections_are_counted_by_hand() -> None:
    def made(**options: Any) -> Any:
        model: Any = zoo.create(
            "vit_nano_patch4_32", image_size=8, patch_size=1, features=16, depth=1, num_heads=2, class_token=False,
            pool="average", mixer={"name": "predicted_sparse_attention", **options},
        )  # fmt: skip
        return model.blocks[0].mixer

    # Two heads of 8 features: 64 x 64 scores and sums of values, or 64 x 9.
    assert predicted_connectivity.operations(made(keep=1.0, connections="nearest"), 64) == 2 * 2 * 2 * 64 * 64 * 8
    assert predicted_connectivity.operations(made(keep=0.14, connections="nearest"), 64) == 2 * 2 * 2 * 64 * 9 * 8
    guess = 2 * 64 * 8 * 4 + 2 * 64 * 10 * 4 + 64 * 8 * 64
    assert predicted_connectivity.operations(made(keep=0.14), 64) == 2 * 2 * (2 * 64 * 9 * 8 + guess)
