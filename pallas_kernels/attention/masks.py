"""Attention masks as functions of positions: ``attention(q, k, v, mask=masks.dilated(2048, 4))``.

A mask here is a function ``(query_position, key_position) -> bool`` of two integer arrays that broadcast against each
other, made of arithmetic and comparisons that are known while tracing. The same function works with numpy, with JAX and
inlined in a kernel. Blocks of keys that it excludes are skipped. Positions are those of the call: indices unless it
gives others.

The masks below are data: they compare by value, and ``&``, ``|`` and ``~`` combine them; :class:`ByHead` gives each
head its own mask. Your own Python function works as well. Create it once and reuse it: programs are compiled and blocks
are listed again for each new function object.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

Mask = Callable[[Any, Any], Any]
Score = Callable[..., Any]
"""(logits, head, query_position, key_position, *rows) -> logits: an elementwise function that the op applies to the
logits.
"""

_FAR = 2**30


class Pattern:
    """A mask that is data: subclasses are frozen dataclasses that define ``__call__``.

    Attributes:
      blocks: numbers of queries and of keys in the blocks that it allows and excludes as a whole, if it has such; for
        kernels that can choose theirs.
    """

    blocks: tuple[int, int] | None = None

    def __call__(self, q: Any, k: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")

    def cover(self, q_length: int, k_length: int, block_q: int, block_k: int) -> tuple[np.ndarray, np.ndarray] | None:
        """:func:`pallas_kernels.attention.blocks.cover` without evaluating all pairs, for masks that know a faster way;
        None for others.
        """
        del q_length, k_length, block_q, block_k
        return None

    def __and__(self, other: Mask) -> AllOf:
        return AllOf((self, other))

    def __or__(self, other: Mask) -> AnyOf:
        return AnyOf((self, other))

    def __invert__(self) -> Not:
        return Not(self)


@dataclasses.dataclass(frozen=True)
class Window(Pattern):
    """Keys at [query - left, query + right]; None is unbounded."""

    left: int | None = None
    right: int | None = None

    def __call__(self, q: Any, k: Any) -> Any:
        least, most = (-_FAR if self.left is None else -self.left), (_FAR if self.right is None else self.right)
        return (k - q >= least) & (k - q <= most)


@dataclasses.dataclass(frozen=True)
class Segments(Pattern):
    """Consecutive segments of ``size`` tokens, each attending only to itself."""

    size: int

    def __call__(self, q: Any, k: Any) -> Any:
        return q // self.size == k // self.size


@dataclasses.dataclass(frozen=True)
class Dilated(Pattern):
    """Attention among every ``rate``-th token of each segment, starting at ``offset`` (LongNet, arXiv:2307.02486)."""

    segment: int
    rate: int
    offset: int = 0

    def __call__(self, q: Any, k: Any) -> Any:
        kept = [at % self.segment % self.rate == self.offset for at in (q, k)]
        return (q // self.segment == k // self.segment) & kept[0] & kept[1]


@dataclasses.dataclass(frozen=True)
class GridWindows(Pattern):
    """Square windows of an image whose tokens are in row-major order (block attention of MaxViT, arXiv:2204.01697)."""

    width: int
    window: int

    def __call__(self, q: Any, k: Any) -> Any:
        width, window = self.width, self.window
        return (q // width // window == k // width // window) & (q % width // window == k % width // window)


@dataclasses.dataclass(frozen=True)
class GridStrides(Pattern):
    """Tokens at the same position within each of ``cells`` x ``cells`` parts of an image (grid attention of MaxViT,
    arXiv:2204.01697).
    """

    height: int
    width: int
    cells: int

    def __call__(self, q: Any, k: Any) -> Any:
        width, down, across = self.width, self.height // self.cells, self.width // self.cells
        return (q // width % down == k // width % down) & (q % width % across == k % width % across)


@dataclasses.dataclass(frozen=True)
class FieldOfView(Pattern):
    """The field of view of an image token (in row-major order) in one direction, including its edges and the token
    itself (LookHere, arXiv:2405.13985).

    Attributes:
      width: columns of the image.
      direction: direction of the field's center, in degrees counterclockwise: 0 is right, 90 up.
      angle: width of the field, in degrees: 180 is half of the image.
      prefix: number of tokens before those of the image, which attend to all tokens and are attended to by all.

    Raises:
      ValueError: the field is wider than 180 degrees, or its edges are not at multiples of 45 degrees, for which
        comparisons of rows and columns are exact.
    """

    width: int
    direction: float
    angle: float = 180.0
    prefix: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.angle <= 180 or any(edge % 45 for edge in self._edges):
            raise ValueError(
                f"a field of view is at most 180 degrees wide and has its edges at multiples of 45 degrees, not "
                f"{self.angle} degrees around {self.direction}"
            )

    @property
    def _edges(self) -> tuple[float, float]:
        """Directions of the right and the left edge, in degrees."""
        return self.direction - self.angle / 2, self.direction + self.angle / 2

    def __call__(self, q: Any, k: Any) -> Any:
        up = (q - self.prefix) // self.width - (k - self.prefix) // self.width
        across = (k - self.prefix) % self.width - (q - self.prefix) % self.width
        # Edges as integer steps of columns and rows, so that comparisons are exact.
        (x, y), (x2, y2) = ([round(f(math.radians(edge))) for f in (math.cos, math.sin)] for edge in self._edges)
        within = (x * up >= y * across) & (x2 * up <= y2 * across)
        return within | (q < self.prefix) | (k < self.prefix)


@dataclasses.dataclass(frozen=True)
class Global(Pattern):
    """The first ``count`` tokens attend to all tokens and are attended to by all; ``~Global(n)`` allows the pairs
    without them.
    """

    count: int

    def __call__(self, q: Any, k: Any) -> Any:
        return (q < self.count) | (k < self.count)


@dataclasses.dataclass(frozen=True)
class BlockLines(Pattern):
    """Whole blocks of tokens along lines in the matrix of blocks: block i attends to the blocks (slope * i + start)
    modulo ``count``.

    Attributes:
      block: tokens of a block.
      count: number of blocks.
      lines: (slope, start) of each line.
    """

    block: int
    count: int
    lines: tuple[tuple[int, int], ...]

    def __call__(self, q: Any, k: Any) -> Any:
        i, j = q // self.block, k // self.block
        parts = [j == (i * slope + start) % self.count for slope, start in self.lines]
        return functools.reduce(operator.or_, parts, (i < 0) & (j < 0))


@dataclasses.dataclass(frozen=True)
class BlockWindow(Pattern):
    """Whole blocks of tokens that are at most ``reach`` blocks away."""

    block: int
    reach: int

    def __call__(self, q: Any, k: Any) -> Any:
        return abs(q // self.block - k // self.block) <= self.reach


@dataclasses.dataclass(frozen=True)
class AllOf(Pattern):
    """The pairs that all parts allow."""

    parts: tuple[Mask, ...]

    def __call__(self, q: Any, k: Any) -> Any:
        return functools.reduce(operator.and_, (part(q, k) for part in self.parts))


@dataclasses.dataclass(frozen=True)
class AnyOf(Pattern):
    """The pairs that any part allows."""

    parts: tuple[Mask, ...]

    def __call__(self, q: Any, k: Any) -> Any:
        return functools.reduce(operator.or_, (part(q, k) for part in self.parts))


@dataclasses.dataclass(frozen=True)
class Not(Pattern):
    """The pairs that the part does not allow."""

    part: Mask

    def __call__(self, q: Any, k: Any) -> Any:
        return ~self.part(q, k)


@dataclasses.dataclass(frozen=True)
class ByHead:
    """A mask for each query head. Heads with equal masks are computed together."""

    parts: tuple[Mask, ...]


window, segments, dilated, grid_windows, grid_strides = Window, Segments, Dilated, GridWindows, GridStrides


def causal() -> Window:
    """Keys at positions up to the query's."""
    return Window(None, 0)


def global_and_random(
    length: int, block: int, *, first: int = 1, window: int = 3, random: int = 3, seed: int = 0
) -> Pattern:
    """Attention between whole blocks of tokens, after BigBird (arXiv:2007.14062): global blocks, a window of
    neighboring blocks, and random blocks.

    Args:
      length: length of the sequence.
      block: tokens of a block.
      first: number of global blocks at the start, which attend to all and are attended to by all.
      window: neighboring blocks that each block attends to, itself included.
      random: largest number of further blocks that each attends to: random lines in the matrix of blocks, which a
        kernel can compute and which may overlap with the other blocks.
      seed: seed of their choice.
    """
    count = -(-length // block)
    lines = np.random.default_rng(seed).integers(0, count, (random, 2)).tolist()
    return (
        Global(first * block)
        | BlockWindow(block, window // 2)
        | BlockLines(block, count, tuple((slope, start) for slope, start in lines))
    )


def all_of(*parts: Mask) -> Pattern:
    """The pairs that all parts allow."""
    return AllOf(parts)


def any_of(*parts: Mask) -> Pattern:
    """The pairs that any part allows."""
    return AnyOf(parts)


def without_windows(mask: Mask | None) -> tuple[tuple[int | None, int | None], Mask | None]:
    """Splits a mask into a window (left, right) and the remaining mask, or None."""
    if isinstance(mask, Window):
        return (mask.left, mask.right), None
    if not isinstance(mask, AllOf):
        return (None, None), mask
    found = [without_windows(part) for part in mask.parts]
    reach = functools.reduce(narrower, (reach for reach, _ in found))
    rest = tuple(part for _, part in found if part is not None)
    return reach, (rest[0] if len(rest) == 1 else AllOf(rest)) if rest else None


def narrower(a: tuple[int | None, int | None], b: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    """The intersection of two windows."""
    left, right = (min((side for side in sides if side is not None), default=None) for sides in zip(a, b, strict=True))
    return left, right
