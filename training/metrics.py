"""Metrics as (sum, count) pairs that add up exactly over microbatches, devices and batches: sum / count."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

Pairs = Mapping[str, tuple[Any, Any]]


def add(a: Pairs, b: Pairs) -> dict[str, tuple[Any, Any]]:
    """Adds two sets of pairs with the same names."""
    return jax.tree.map(lambda x, y: x + y, dict(a), dict(b))


def figures(pairs: Iterable[Pairs]) -> dict[str, float]:
    """The figures over all ``pairs``, fetched to the host and summed in float64; NaN where nothing was counted."""
    totals: dict[str, list[float]] = {}
    for one in jax.device_get(list(pairs)):
        for name, (total, count) in one.items():
            entry = totals.setdefault(name, [0.0, 0.0])
            entry[0] += float(np.float64(total))
            entry[1] += float(np.float64(count))
    return {name: total / count if count else math.nan for name, (total, count) in totals.items()}
