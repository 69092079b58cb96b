"""Attention masks as functions of positions: ``attention(q, k, v, mask=masks.dilated(2048, 4))``.

A mask here is a function ``(query_position, key_position) -> bool`` of two integer arrays that broadcast against each
other, arithmetic and comparisons known while tracing: it is the same for numpy, for JAX and inside a kernel, which has
it inline. Blocks of keys that it rules out are skipped. Positions are those of the call: indices, unless it gives
others.

The masks below are data: they compare by value, and ``&``, ``|`` and ``~`` combine them; :class:`ByHead` gives each
head its own. A Python function of your own serves as well. Make one once and keep it: programs are compiled and blocks
are listed again for each function.
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
"""(logits, head, query_position, key_position, *rows) -> logits, elementwise: what the op changes logits by."""

_FAR = 2**30


class Pattern:
    """A mask that is data."""

    def __call__(self, q: Any, k: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not say what it allows")

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
    """Windows of ``size`` neighboring tokens, each attending to itself."""

    size: int

    def __call__(self, q: Any, k: Any) -> Any:
        return q // self.size == k // self.size


@dataclasses.dataclass(frozen=True)
class Dilated(Pattern):
    """Every ``rate``-th token of each segment, from ``offset`` on, among themselves (LongNet, arXiv:2307.02486)."""

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
    """Tokens at the same place of each of ``cells`` x ``cells`` parts of an image (grid attention of MaxViT,
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
    """What a token of an image in row-major order sees when it looks in one direction, edges and itself included
    (LookHere, arXiv:2405.13985).

    Attributes:
      width: columns of the image.
      direction: of the middle of the field, in degrees counterclockwise: 0 is right, 90 up.
      angle: of the field, in degrees: 180 is half of the image.
      prefix: tokens before those of the image, which see and are seen by all.

    Raises:
      ValueError: a field that is wider than 180 degrees, or whose edges are not at multiples of 45 degrees, which
        comparisons of whole rows and columns find.
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
        """Directions of the right and of the left edge."""
        return self.direction - self.angle / 2, self.direction + self.angle / 2

    def __call__(self, q: Any, k: Any) -> Any:
        up = (q - self.prefix) // self.width - (k - self.prefix) // self.width
        across = (k - self.prefix) % self.width - (q - self.prefix) % self.width
        # Edges as steps of whole columns and rows, so that nothing is rounded.
        (x, y), (x2, y2) = ([round(f(math.radians(edge))) for f in (math.cos, math.sin)] for edge in self._edges)
        within = (x * up >= y * across) & (x2 * up <= y2 * across)
        return within | (q < self.prefix) | (k < self.prefix)


@dataclasses.dataclass(frozen=True)
class Global(Pattern):
    """The first ``count`` tokens see and are seen by all; ``~Global(n)`` is what they are no part of."""

    count: int

    def __call__(self, q: Any, k: Any) -> Any:
        return (q < self.count) | (k < self.count)


@dataclasses.dataclass(frozen=True)
class BlockLines(Pattern):
    """Whole blocks of tokens along lines through the table of blocks: of block i, those (slope * i + start) modulo
    ``count``.

    Attributes:
      block: tokens of a block.
      count: of blocks.
      lines: (slope, start) of each.
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
    """Whole blocks of tokens at most ``reach`` blocks away."""

    block: int
    reach: int

    def __call__(self, q: Any, k: Any) -> Any:
        return abs(q // self.block - k // self.block) <= self.reach


@dataclasses.dataclass(frozen=True)
class AllOf(Pattern):
    """What every part allows."""

    parts: tuple[Mask, ...]

    def __call__(self, q: Any, k: Any) -> Any:
        return functools.reduce(operator.and_, (part(q, k) for part in self.parts))


@dataclasses.dataclass(frozen=True)
class AnyOf(Pattern):
    """What any part allows."""

    parts: tuple[Mask, ...]

    def __call__(self, q: Any, k: Any) -> Any:
        return functools.reduce(operator.or_, (part(q, k) for part in self.parts))


@dataclasses.dataclass(frozen=True)
class Not(Pattern):
    """What the part does not allow."""

    part: Mask

    def __call__(self, q: Any, k: Any) -> Any:
        return ~self.part(q, k)


@dataclasses.dataclass(frozen=True)
class ByHead:
    """A mask for each head of the queries. Heads of equal masks are computed together."""

    parts: tuple[Mask, ...]


window, segments, dilated, grid_windows, grid_strides = Window, Segments, Dilated, GridWindows, GridStrides


def causal() -> Window:
    """Keys up to the query."""
    return Window(None, 0)


def global_and_random(
    length: int, block: int, *, first: int = 1, window: int = 3, random: int = 3, seed: int = 0
) -> Pattern:
    """Whole blocks of tokens, after BigBird (arXiv:2007.14062): the first see and are seen by all, each sees those
    around it and some others.

    Args:
      length: of the sequence.
      block: tokens of a block.
      first: blocks that see and are seen by all.
      window: blocks around each that it sees, itself included.
      random: others that each sees, at most: random lines through the table of blocks, which a kernel can compute and
        which may meet the rest.
      seed: of their choice.
    """
    count = -(-length // block)
    lines = np.random.default_rng(seed).integers(0, count, (random, 2)).tolist()
    return (
        Global(first * block)
        | BlockWindow(block, window // 2)
        | BlockLines(block, count, tuple((slope, start) for slope, start in lines))
    )


def all_of(*parts: Mask) -> Pattern:
    """What every part allows."""
    return AllOf(parts)


def any_of(*parts: Mask) -> Pattern:
    """What any part allows."""
    return AnyOf(parts)


def without_windows(mask: Mask | None) -> tuple[tuple[int | None, int | None], Mask | None]:
    """The window that a mask includes, (left, right), and what it asks beside it."""
    if isinstance(mask, Window):
        return (mask.left, mask.right), None
    if not isinstance(mask, AllOf):
        return (None, None), mask
    found = [without_windows(part) for part in mask.parts]
    reach = functools.reduce(narrower, (reach for reach, _ in found))
    rest = tuple(part for _, part in found if part is not None)
    return reach, (rest[0] if len(rest) == 1 else AllOf(rest)) if rest else None


def narrower(a: tuple[int | None, int | None], b: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    """What two windows share."""
    left, right = (min((side for side in sides if side is not None), default=None) for sides in zip(a, b, strict=True))
    return left, right
