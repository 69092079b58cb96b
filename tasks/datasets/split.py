"""Held-out examples chosen by a fixed rule: stratified, and the same on every machine and version.

Within each class the examples are ranked by the SHA-256 of a key that names them; the first ones are held out. No
random number generator or splitting function of a library is involved, and adding an example moves at most the examples
at its class's border.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.05
"""Fraction of all documents in each of the validation and test splits."""


def split_of(key: str) -> str:
    """The split of the document named ``key``, by its SHA-256 alone, independent of all other documents."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    return "test" if place < HELD_OUT else "validation" if place < 2 * HELD_OUT else "train"


def hold_out(keys: Sequence[str], labels: Sequence[int], count: int) -> list[int]:
    """Chooses ``count`` examples, from each class in proportion to its size.

    Classes' shares are rounded by largest remainders (a smaller label first among equals). The last
    example of a class is never taken, so fewer may be returned where classes are tiny.

    Args:
      keys: a name for each example, unique.
      labels: the class of each example.
      count: number of examples to hold out.

    Returns:
      Their indices, ascending.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        members[label].append(position)
    exact = {
        label: (count * len(of), len(labels)) for label, of in members.items()
    }  # share as a fraction: no rounding error
    quota = {label: part // whole for label, (part, whole) in exact.items()}
    by_remainder = sorted(exact, key=lambda label: (-(exact[label][0] % exact[label][1]), label))
    for label in by_remainder[: count - sum(quota.values())]:
        quota[label] += 1
    chosen: list[int] = []
    for label, of in members.items():
        ranked = sorted(of, key=lambda position: hashlib.sha256(keys[position].encode()).digest())
        chosen += ranked[: min(quota[label], len(of) - 1)]
    return sorted(chosen)
