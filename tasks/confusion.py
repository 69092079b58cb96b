"""The confusions of a classifier, and the metrics of a whole split that are not means over its examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_PAIRS = 20  # most confused pairs that are listed


def explained(rows: Mapping[str, np.ndarray], class_names: Sequence[str], what: str) -> dict[str, Any]:
    """The number of examples and the accuracy of each class, and the most confused pairs (class, predicted class) with
    their counts.

    Args:
      rows: "label" and "predicted" of each example.
      class_names: names of the labels.
      what: what the examples are called, such as "images".
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
    """F1, the harmonic mean of precision and recall: that of class 1 if there are two classes, else the mean over
    classes; 0 for a class that neither occurs nor is predicted.
    """
    own, guessed = np.bincount(label, minlength=classes), np.bincount(predicted, minlength=classes)
    right = np.bincount(label[label == predicted], minlength=classes)
    scores = 2 * right / np.maximum(own + guessed, 1)
    return float(scores[1] if classes == 2 else scores.mean())


def auroc(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: the fraction of pairs of an example of class 1 and one of class 0 in which the former
    scores higher; equal scores count half. NaN if a class is missing.
    """
    score = score.astype(np.float64)
    _, rank, counts = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = (np.cumsum(counts) - (counts - 1) / 2)[rank]
    ones = int(label.sum())
    zeros = len(label) - ones
    if not ones or not zeros:
        return float("nan")
    return float((mean_rank[label == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))
