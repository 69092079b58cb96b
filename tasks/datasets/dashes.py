"""Dashed paths on a grid of pixels that keep their distance from each other: the geometry of Pathfinder."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Point = tuple[float, float]
"""Row and column; a pixel's middle has whole numbers."""
_TRIALS = 3
"""Directions tried for the next dash."""
_PLACES = 50
"""Places tried for a path somewhere."""


class Dash(NamedTuple):
    """A dash from ``tail`` to ``head``, in the direction of ``angle`` (radians; 0 is to the right, pi / 2 down).

    ``pixels`` are those of the canvas that it takes.
    """

    tail: Point
    head: Point
    angle: float
    pixels: np.ndarray


def along(point: Point, angle: float, distance: float) -> Point:
    """The point so far away."""
    return point[0] + distance * math.sin(angle), point[1] + distance * math.cos(angle)


def distances(rows: np.ndarray, columns: np.ndarray, tail: Point, head: Point) -> np.ndarray:
    """Distance of points from a line between two."""
    v, u = head[0] - tail[0], head[1] - tail[1]
    rows, columns = rows - tail[0], columns - tail[1]
    share = np.minimum(np.maximum((rows * v + columns * u) / (v * v + u * u), 0), 1)
    return np.sqrt((rows - share * v) ** 2 + (columns - share * u) ** 2)


class Canvas:
    """Where dashes are: each takes the pixels within ``margin`` of its ink.

    Args:
      size: pixels of a side.
      padding: pixels at the borders that no dash may take.
      length, thickness: of a dash.
      margin: half the gap between dashes of a path.
      continuity: turning by delta has the weight cos(min(continuity |delta|, pi / 2))^2.
    """

    def __init__(self, size: int, padding: int, length: int, thickness: float, margin: int, continuity: float):
        self.size, self.length, self.thickness, self.margin = size, length, thickness, margin
        self._continuity = continuity
        self._around, self._disc, self._angles, self._steps = _geometry(length, thickness, margin)
        self._edge = int(self._around[0, -1]) + length + 2 * margin + 1  # beyond it no dash is looked at
        self._width = size + 2 * self._edge
        count = np.ones((self._width, self._width), np.int16)
        inside = slice(self._edge + padding, self._edge + size - padding)
        count[inside, inside] = 0
        self._count = count.reshape(-1)  # how many dashes take a pixel
        self._offsets = self._flat(self._around) - self._flat(np.zeros((2, 1), int))
        self._disc_offsets = self._flat(self._disc) - self._flat(np.zeros((2, 1), int))

    def _flat(self, pixels: np.ndarray) -> np.ndarray:
        """Places in the padded canvas of pixels (2, ...)."""
        return (pixels[0] + self._edge) * self._width + pixels[1] + self._edge

    def _dash(self, tail: Point, head: Point, angle: float) -> Dash:
        row, column = round((tail[0] + head[0]) / 2), round((tail[1] + head[1]) / 2)
        far = distances(self._around[0] + row, self._around[1] + column, tail, head)
        place = (row + self._edge) * self._width + column + self._edge
        return Dash(tail, head, angle, place + self._offsets[far < self.thickness / 2 + self.margin])

    def is_free(self, dash: Dash) -> bool:
        """Whether a dash takes no pixel that is taken, and none of the padding."""
        return not self._count[dash.pixels].any()

    def begin(self, tail: Point, angle: float) -> Dash | None:
        """Enters a first dash, where it is free."""
        dash = self._dash(tail, along(tail, angle, self.length), angle)
        if not self.is_free(dash):
            return None
        self._count[dash.pixels] += 1
        return dash

    def anywhere(self, number: Callable[[], float]) -> Dash | None:
        """Enters a first dash at a free place."""
        for _ in range(_PLACES):
            tail = (math.floor(number() * self.size), math.floor(number() * self.size))
            angle = 2 * math.pi * number()
            if not self._count[self._flat(np.asarray(tail))] and (dash := self.begin(tail, angle)) is not None:
                return dash
        return None

    def extend(self, last: Dash, number: Callable[[], float]) -> Dash | None:
        """Enters the dash after ``last``, which is no obstacle to it; None where none was found.

        The path goes on for the length of a gap, turns in its middle, and draws.
        """
        self._count[last.pixels] -= 1
        dash = self._following(last, number)
        self._count[last.pixels] += 1
        if dash is not None:
            self._count[dash.pixels] += 1
        return dash

    def _following(self, last: Dash, number: Callable[[], float]) -> Dash | None:
        pivot = along(last.head, last.angle, self.margin)
        delta = np.abs((self._angles - last.angle + math.pi) % (2 * math.pi) - math.pi)
        turn = np.minimum(self._continuity * delta, math.pi / 2)
        near = np.flatnonzero(turn < 1.56)
        heads = self._flat(np.rint(self._steps[:, near] + np.asarray(pivot)[:, None]).astype(int))
        free = ~self._count[heads[:, None] + self._disc_offsets].any(1)
        total = np.cumsum(free * np.cos(turn[near]) ** 2)
        if total[-1] < 1e-4:
            return None
        for _ in range(_TRIALS):
            angle = float(self._angles[near[np.searchsorted(total, number() * total[-1], side="right")]])
            dash = self._dash(along(pivot, angle, self.margin), along(pivot, angle, self.margin + self.length), angle)
            if self.is_free(dash):
                return dash
        return None

    def remove(self, path: list[Dash], count: int) -> None:
        """Takes the last dashes of a path back."""
        for _ in range(count):
            self._count[path.pop().pixels] -= 1

    def ink(self, image: np.ndarray, dash: Dash, contrast: float) -> None:
        """Draws a dash: each pixel gets the part of it that a straight line of this thickness covers."""
        rows, columns = (np.arange(self.size)[axis] for axis in (np.s_[:, None], np.s_[None]))
        far = distances(rows, columns, dash.tail, dash.head)
        np.maximum(image, contrast * np.clip(self.thickness / 2 + 0.5 - far, 0, min(self.thickness, 1)), out=image)

    def disc(self, image: np.ndarray, middle: Point, radius: float) -> None:
        """Draws a disc."""
        around = np.arange(self.size)
        far = np.hypot(around[:, None] - middle[0], around[None] - middle[1])
        np.maximum(image, np.clip(radius + 0.5 - far, 0, 1), out=image)


@functools.cache
def _geometry(length: int, thickness: float, margin: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Offsets (2, ...) of the pixels around the middle of a dash and within ``margin`` of a point; the directions of a
    next dash, a pixel apart at its head, and the steps (2, ...) from the turn to that.
    """
    reach = math.ceil(length / 2 + thickness / 2 + margin) + 1
    square, small = (np.asarray(np.mgrid[-r : r + 1, -r : r + 1]).reshape(2, -1) for r in (reach, margin))
    angles = np.arange(0, 2 * math.pi, 1 / (length + margin))
    steps = (length + margin) * np.stack([np.sin(angles), np.cos(angles)])
    return square, small[:, np.hypot(*small) <= margin], angles, steps
