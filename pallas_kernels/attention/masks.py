"""Attention masks as functions of positions: ``attention(q, k, v, mask=masks.dilated(2048, 4))``.

A mask here is a Python function ``(query_position, key_position) -> bool`` of two integer arrays that broadcast against each other,
arithmetic and comparisons known while tracing: it is the same for numpy, for JAX and inside a kernel, which has it inline and
skips the blocks that it rules out. Positions are those of the call: indices, unless it gives others. Write your own, or
combine these with :func:`all_of` and :func:`any_of`. Make one once and keep it: programs are compiled and blocks are listed for each anew.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

Mask = Callable[[Any, Any], Any]
Score = Callable[..., Any]
"""(logits, head, query_position, key_position, *rows) -> logits, elementwise: what the op changes logits by."""

_FAR = 2**30


def causal() -> Mask:
    """Keys up to the query."""
    return lambda q, k: k <= q


def window(left: int | None = None, right: int | None = None) -> Mask:
    """Keys at [query - left, query + right]; None is unbounded."""
    least, most = (-_FAR if left is None else -left), (_FAR if right is None else right)
    return lambda q, k: (k - q >= least) & (k - q <= most)


def segments(size: int) -> Mask:
    """Windows of ``size`` neighboring tokens, each attending to itself."""
    return lambda q, k: q // size == k // size


def dilated(segment: int, rate: int, offset: int = 0) -> Mask:
    """Every ``rate``-th token of each segment, from ``offset`` on, among themselves (LongNet, arXiv:2307.02486)."""

    def visible(q: Any, k: Any) -> Any:
        return (q // segment == k // segment) & (q % segment % rate == offset) & (k % segment % rate == offset)

    return visible


def grid_windows(width: int, window: int) -> Mask:
    """Square windows of an image whose tokens are in row-major order (block attention of MaxViT, arXiv:2204.01697)."""
    return lambda q, k: (q // width // window == k // width // window) & (q % width // window == k % width // window)


def grid_strides(height: int, width: int, cells: int) -> Mask:
    """Tokens at the same place of each of ``cells`` x ``cells`` parts of an image (grid attention of MaxViT, arXiv:2204.01697)."""
    down, across = height // cells, width // cells
    return lambda q, k: (q // width % down == k // width % down) & (q % width % across == k % width % across)


def global_and_random(length: int, block: int, *, first: int = 1, window: int = 3, random: int = 3, seed: int = 0) -> Mask:
    """Whole blocks of tokens, after BigBird (arXiv:2007.14062): the first see and are seen by all, each sees those around it and some others.

    Args:
      length: of the sequence.
      block: tokens of a block.
      first: blocks that see and are seen by all.
      window: blocks around each that it sees, itself included.
      random: others that each sees, at most: random lines through the table of blocks, which a kernel can compute and which may meet the rest.
      seed: of their choice.
    """
    count = -(-length // block)
    lines = np.random.default_rng(seed).integers(0, count, (random, 2)).tolist()

    def visible(q: Any, k: Any) -> Any:
        i, j = q // block, k // block
        seen = (i < first) | (j < first) | (abs(i - j) <= window // 2)
        for slope, start in lines:
            seen = seen | (j == (i * slope + start) % count)
        return seen

    return visible


def all_of(*parts: Mask) -> Mask:
    """What every part allows."""
    return lambda q, k: functools.reduce(operator.and_, (part(q, k) for part in parts))


def any_of(*parts: Mask) -> Mask:
    """What any part allows."""
    return lambda q, k: functools.reduce(operator.or_, (part(q, k) for part in parts))
