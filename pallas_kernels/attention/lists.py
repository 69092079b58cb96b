"""Lists of the key blocks that each chunk of queries attends to, for mask functions in the XLA implementation.

Chunks with about equally many blocks form a group, which one loop computes with copies of its keys: the cost is
proportional to the mask's density, counted in blocks.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from pallas_kernels.attention.blocks import static_cover
from pallas_kernels.attention.call import Reach
from pallas_kernels.attention.masks import Mask, Pattern

CHUNK, BLOCK = 128, 64
LARGEST = 2**30
"""Largest number of mask entries that are evaluated while tracing, of masks that know no faster way."""
WORTH = 0.75
"""Fraction of all blocks up to which lists cost less than masks."""
SLACK = 7 / 8
"""Smallest length of a list in a group, as a fraction of the group's longest."""


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Chunks of queries that are computed in one loop.

    Attributes:
      chunks: int32 (count,), indices of the chunks.
      blocks: int32 (count, longest), the key blocks that each chunk attends to; shorter lists are filled by repeating
        the first one.
      positions: int32 (count, longest, BLOCK), positions of the keys; -1 in repeated blocks and after the last key.
    """

    chunks: np.ndarray
    blocks: np.ndarray
    positions: np.ndarray


@functools.lru_cache(64)
def groups(pattern: Mask, reach: Reach, q_length: int, k_length: int) -> tuple[Group, ...] | None:
    """The groups, with indices as positions; None where lists save little, or the mask is too large to be evaluated."""
    if q_length * k_length > LARGEST and not (isinstance(pattern, Pattern) and pattern.blocks):
        return None
    seen = static_cover(*reach, pattern, q_length, k_length, CHUNK, BLOCK).some
    count = np.maximum(seen.sum(1), 1)
    found: list[Group] = []
    order = np.argsort(-count, kind="stable")
    while len(order):
        longest = count[order[0]]
        together = order[count[order] >= SLACK * longest]
        order = order[len(together) :]
        ids = np.argsort(~seen[together], axis=1, kind="stable")[:, :longest]
        real = np.take_along_axis(seen[together], ids, 1)
        ids = np.where(real, ids, ids[:, :1])
        positions = ids[..., None] * BLOCK + np.arange(BLOCK)
        positions = np.where(real[..., None] & (positions < k_length), positions, -1)
        found.append(Group(together.astype(np.int32), ids.astype(np.int32), positions.astype(np.int32)))
    if sum(group.blocks.size for group in found) > WORTH * seen.size:
        return None
    return tuple(found)
