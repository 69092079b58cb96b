"""What a classifier takes for what, and the figures of a whole split that are no means over its examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_PAIRS = 20  # of confused classes, in the file at the end of a run


def explained(rows: Mapping[str, np.ndarray], class_names: Sequence[str], what: str) -> dict[str, Any]:
    """The number of examples and the accuracy of each class, and the pairs (class, taken for) most confused, with their
    counts.

    Args:
      rows: "label" and "predicted" of each example.
      class_names: of the labels.
      what: the examples are, "images".
    """
    count = len(class_names)
    pairs, counts = np.unique(rows["label"].astype(np.int64) * count + rows["predicted"], return_counts=True)
    examples = np.bincount(rows["label"], minlength=count)
    right = np.bincount(rows["label"][rows["label"] == rows["predicted"]], minlength=count)
    wrong = sorted((-int(n), int(pair)) for pair, n in zip(pairs, counts) if pair // count != pair % count)[:_PAIRS]
    return {
        "classes": [
            {"name": name, what: int(examples[i]), "accuracy": float(right[i] / examples[i]) if examples[i] else None}
            for i, name in enumerate(class_names)
        ],
        "confused": [
            {"class": class_names[pair // count], "taken_for": class_names[pair % count], what: -n} for n, pair in wrong
        ],
    }


def f1(label: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """The harmonic mean of precision and recall: of class 1 of two, else the mean over the classes; 0 for a class that
    is neither there nor predicted.
    """
    own, guessed = np.bincount(label, minlength=classes), np.bincount(predicted, minlength=classes)
    right = np.bincount(label[label == predicted], minlength=classes)
    scores = 2 * right / np.maximum(own + guessed, 1)
    return float(scores[1] if classes == 2 else scores.mean())


def auroc(label: np.ndarray, score: np.ndarray) -> float:
    """The part of the pairs of an example of class 1 and one of class 0 in which the former scores higher; equal scores
    count half. Not-a-number where a class is missing.
    """
    score = score.astype(np.float64)
    _, rank, counts = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = (np.cumsum(counts) - (counts - 1) / 2)[rank]
    ones = int(label.sum())
    zeros = len(label) - ones
    if not ones or not zeros:
        return float("nan")
    return float((mean_rank[label == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))
