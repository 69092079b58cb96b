"""Dashed paths on a grid of pixels that keep their distance from each other: the geometry of Pathfinder."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Point = tuple[float, float]
"""Row and column; centers of pixels have integer coordinates."""
_TRIALS = 3
"""Directions tried for the next dash."""
_PLACES = 50
"""Places tried for the start of a distracting path."""


class Dash(NamedTuple):
    """A dash from ``tail`` to ``head``, in the direction of ``angle`` (radians; 0 is to the right, pi / 2 down).

    ``pixels`` are the flat indices of the canvas pixels that it occupies.
    """

    tail: Point
    head: Point
    angle: float
    pixels: np.ndarray


def along(point: Point, angle: float, distance: float) -> Point:
    """The point at ``distance`` from ``point`` in the direction of ``angle``."""
    return point[0] + distance * math.sin(angle), point[1] + distance * math.cos(angle)


def distances(rows: np.ndarray, columns: np.ndarray, tail: Point, head: Point) -> np.ndarray:
    """Distances of the points (rows, columns) from the line segment from ``tail`` to ``head``."""
    v, u = head[0] - tail[0], head[1] - tail[1]
    rows, columns = rows - tail[0], columns - tail[1]
    share = np.minimum(np.maximum((rows * v + columns * u) / (v * v + u * u), 0), 1)
    return np.sqrt((rows - share * v) ** 2 + (columns - share * u) ** 2)


class Canvas:
    """The pixels occupied by dashes: each occupies the pixels within ``margin`` of its ink.

    Args:
      size: pixels of a side.
      padding: width in pixels of the border that dashes must not occupy.
      length, thickness: length and thickness of a dash.
      margin: half the gap between dashes of a path.
      continuity: a turn by delta has the weight cos(min(continuity |delta|, pi / 2))^2.
    """

    def __init__(self, size: int, padding: int, length: int, thickness: float, margin: int, continuity: float):
        self.size, self.length, self.thickness, self.margin = size, length, thickness, margin
        self._continuity = continuity
        self._around, self._disc, self._angles, self._steps = _geometry(length, thickness, margin)
        self._edge = int(self._around[0, -1]) + length + 2 * margin + 1  # a border that keeps indices inside
        self._width = size + 2 * self._edge
        count = np.ones((self._width, self._width), np.int16)
        inside = slice(self._edge + padding, self._edge + size - padding)
        count[inside, inside] = 0
        self._count = count.reshape(-1)  # number of dashes that occupy each pixel
        self._offsets = self._flat(self._around) - self._flat(np.zeros((2, 1), int))
        self._disc_offsets = self._flat(self._disc) - self._flat(np.zeros((2, 1), int))

    def _flat(self, pixels: np.ndarray) -> np.ndarray:
        """Flat indices in the padded canvas of pixels (2, ...)."""
        return (pixels[0] + self._edge) * self._width + pixels[1] + self._edge

    def _dash(self, tail: Point, head: Point, angle: float) -> Dash:
        row, column = round((tail[0] + head[0]) / 2), round((tail[1] + head[1]) / 2)
        far = distances(self._around[0] + row, self._around[1] + column, tail, head)
        place = (row + self._edge) * self._width + column + self._edge
        return Dash(tail, head, angle, place + self._offsets[far < self.thickness / 2 + self.margin])

    def is_free(self, dash: Dash) -> bool:
        """Whether all pixels of a dash are unoccupied and outside the padding."""
        return not self._count[dash.pixels].any()

    def begin(self, tail: Point, angle: float) -> Dash | None:
        """Adds the first dash of a path, if it is free; else returns None."""
        dash = self._dash(tail, along(tail, angle, self.length), angle)
        if not self.is_free(dash):
            return None
        self._count[dash.pixels] += 1
        return dash

    def anywhere(self, number: Callable[[], float]) -> Dash | None:
        """Adds the first dash of a path at a random free place; None if none was found."""
        for _ in range(_PLACES):
            tail = (math.floor(number() * self.size), math.floor(number() * self.size))
            angle = 2 * math.pi * number()
            if not self._count[self._flat(np.asarray(tail))] and (dash := self.begin(tail, angle)) is not None:
                return dash
        return None

    def extend(self, last: Dash, number: Callable[[], float]) -> Dash | None:
        """Adds the dash after ``last``, whose own pixels do not block it; None if none was found.

        The path continues for the length of a gap, with a turn in the middle of the gap.
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
        """Removes the last ``count`` dashes of a path."""
        for _ in range(count):
            self._count[path.pop().pixels] -= 1

    def ink(self, image: np.ndarray, dash: Dash, contrast: float) -> None:
        """Draws a dash: the value of each pixel is the fraction that a straight line of this thickness covers, times
        ``contrast``.
        """
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
    """Offsets (2, ...) of the pixels around the center of a dash, and within ``margin`` of a point; the candidate
    angles of a next dash, one pixel apart at its head, and the steps (2, ...) from the turn to the head.
    """
    reach = math.ceil(length / 2 + thickness / 2 + margin) + 1
    square, small = (np.asarray(np.mgrid[-r : r + 1, -r : r + 1]).reshape(2, -1) for r in (reach, margin))
    angles = np.arange(0, 2 * math.pi, 1 / (length + margin))
    steps = (length + margin) * np.stack([np.sin(angles), np.cos(angles)])
    return square, small[:, np.hypot(*small) <= margin], angles, steps
