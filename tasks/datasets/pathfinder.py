"""Pathfinder: do two markers lie on the ends of the same dashed path, or of two different ones?

D. Linsley et al. (arXiv:1805.08315) and J. Kim et al. (ICLR 2020), with the sizes of Long Range Arena (Y. Tay et al.,
arXiv:2011.04006), whose hard form has paths of 14 dashes: 32 x 32 pixels ("Pathfinder"), 64, 128 ("Path-X") and 256.

Two target paths start near the middle, ``seed_distance`` apart. The next dash turns by delta with a weight of
cos(min(continuity |delta|, pi / 2))^2 and must not come within the margins of another dash. Shorter paths are
distractors, as many as fit up to a given number. Discs mark the beginning of one target path and the end of the same
path (label 1) or of the other (label 0).

An image is a function of (seed, split, index), and its label is ``index % 2``: the classes are balanced. The rules are
those of the authors' generator (github.com/drewlinsley/pathfinder), with two differences. If a dash can't be placed
after three trials, some of the last dashes of its path are redrawn; the authors start over, and only a few percent of
their attempts succeed. And distances are exact, while theirs are those of enlarged bitmaps that are downsampled.
``path=`` reads released folders instead.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from suggestions import unknown
from tasks.datasets.dashes import Canvas, Dash, along
from tasks.datasets.released_pathfinder import Released
from tasks.datasets.sequences import Source
from tasks.datasets.split import SPLITS

_TRIALS = 5
"""Attempts at a distracting path."""
_SETBACKS, _LOST = 100, 6
"""How often target paths may get stuck before both are restarted, and the maximum number of dashes that are redrawn."""


@dataclasses.dataclass(frozen=True)
class Design:
    """The parameters of images of one size; lengths are in pixels.

    Attributes:
      size: side of the image.
      padding: width of the border without paths.
      seed_distance: distance between the beginnings of the target paths; the first begins at least twice that from a
        border.
      marker_radius: radius of the discs.
      dash_length, thickness: length and thickness of a dash.
      margins: possible values of half the gap between dashes; each image has one.
      continuity: the greater, the straighter the paths.
      distractors: total number of dashes of all distractors, each of which has a third as many dashes as a target path.
      target_contrast, distractor_contrast: contrast relative to the markers.
      border: minimum distance of the first path's beginning from a border; None for twice ``seed_distance``.
    """

    size: int
    padding: int = 1
    seed_distance: int = 27
    marker_radius: float = 3.0
    dash_length: int = 5
    thickness: float = 1.5
    margins: tuple[int, ...] = (1,)
    continuity: float = 1.8
    distractors: int = 30
    target_contrast: float = 1.0
    distractor_contrast: float = 1.0
    border: int | None = None


DESIGNS: Mapping[int, Design] = {
    # Our own sizes, for machines without an accelerator: meant for paths of 3 and of 6 dashes.
    12: Design(
        12, padding=0, seed_distance=4, marker_radius=1.0, dash_length=2, thickness=0.5, continuity=0.7, distractors=2,
        target_contrast=1.5, distractor_contrast=2.0, border=3,
    ),
    16: Design(
        16, padding=0, seed_distance=5, marker_radius=1.0, dash_length=2, thickness=0.5, continuity=0.7, distractors=4,
        target_contrast=1.5, distractor_contrast=2.0, border=4,
    ),
    32: Design(
        32, seed_distance=7, marker_radius=1.5, dash_length=2, thickness=0.5, continuity=1.0, distractors=20,
        target_contrast=1.5, distractor_contrast=2.0,
    ),
    64: Design(
        64, seed_distance=12, marker_radius=2.5, thickness=1.0, distractors=22, target_contrast=0.8,
        distractor_contrast=0.8,
    ),
    128: Design(
        128, seed_distance=20, margins=(2, 3), distractors=35, target_contrast=0.9, distractor_contrast=0.9,
    ),
    256: Design(256, padding=22, marker_radius=5.0, thickness=2.0, margins=(3,)),
}  # fmt: skip
"""By size. Values that Long Range Arena's builders do not state are the defaults of the authors' generator."""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """An image and its contents.

    Attributes:
      pixels: (size, size) uint8.
      label: 1 if the markers are at the ends of one path.
      targets, distractors: paths, each a list of dashes in order.
      markers: (row, column) of each marker.
      margin: half the gap between dashes.
    """

    pixels: np.ndarray
    label: int
    targets: list[list[Dash]]
    distractors: list[list[Dash]]
    markers: list[tuple[float, float]]
    margin: int


def draw(design: Design, dashes: int, label: int, number: Callable[[], float]) -> Drawing:
    """Draws an image with target paths of ``dashes`` dashes; ``number`` returns uniform random numbers from [0, 1)."""
    margin = design.margins[int(number() * len(design.margins))]
    while True:
        canvas = Canvas(design.size, design.padding, design.dash_length, design.thickness, margin, design.continuity)
        targets = _targets(canvas, design, dashes, number)
        if targets is not None:
            break
    distractors: list[list[Dash]] = []
    short = dashes // 3
    for _ in range(design.distractors // max(short, 1) if short else 0):
        for _ in range(_TRIALS):
            found = _distractor(canvas, short, number)
            if found is not None:
                distractors.append(found)
                break
    first = int(number() * 2)
    ends = [targets[first][0].tail, targets[first if label else 1 - first][-1].head]
    image = np.zeros((design.size, design.size))
    for paths, contrast in ((targets, design.target_contrast), (distractors, design.distractor_contrast)):
        for dash in (dash for path in paths for dash in path):
            canvas.ink(image, dash, contrast)
    for end in ends:
        canvas.disc(image, end, design.marker_radius)
    pixels = np.round(255 * image / image.max()).astype(np.uint8)
    return Drawing(pixels, label, targets, distractors, ends, margin)


def _targets(canvas: Canvas, design: Design, dashes: int, number: Callable[[], float]) -> list[list[Dash]] | None:
    """Adds two paths that grow alternately; None if they get stuck too often."""
    border = 2 * design.seed_distance if design.border is None else design.border
    span = design.size - 2 * border
    first = (border + math.floor(number() * span), border + math.floor(number() * span))
    second = along(first, 2 * math.pi * number(), design.seed_distance)
    paths: list[list[Dash]] = []
    for tail in (first, (round(second[0]), round(second[1]))):
        dash = canvas.begin(tail, 2 * math.pi * number())
        if dash is None:
            return None
        paths.append([dash])
    for _ in range(_SETBACKS):
        while min(map(len, paths)) < dashes:
            path = paths[len(paths[0]) > len(paths[1])]
            dash = canvas.extend(path[-1], number)
            if dash is None:
                break
            path.append(dash)
        else:
            return paths
        canvas.remove(path, min(1 + math.floor(number() * _LOST), len(path) - 1))
    return None


def _distractor(canvas: Canvas, dashes: int, number: Callable[[], float]) -> list[Dash] | None:
    """Adds a path at a random place; None if it gets stuck."""
    dash = canvas.anywhere(number)
    path: list[Dash] = []
    while dash is not None:
        path.append(dash)
        if len(path) == dashes:
            return path
        dash = canvas.extend(dash, number)
    canvas.remove(path, len(path))
    return None


class Drawings:
    """The drawn images of a split as sequences of pixels.

    Args:
      dataset: the data set.
      split: name of the split.
      count: number of images.
      cache: a folder in which drawn images are stored; None for none.
    """

    def __init__(self, dataset: Pathfinder, split: str, count: int, cache: str | None):
        self._dataset, self._split, self._count, self._file = dataset, split, count, None
        if cache is not None:
            said = f"{dataset.design} {dataset.dashes} {dataset.seed} {split} {count}"
            key = hashlib.sha256(said.encode()).hexdigest()[:16]
            self._file = Path(cache).expanduser() / f"pathfinder-{dataset.design.size}-{split}-{key}"
        self._kept: tuple[np.memmap, np.memmap] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, None, int]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        if self._file is None:
            return self.drawing(index).pixels.reshape(-1), None, index % 2
        pixels, known = self._kept or self._open(self._file)
        if not known[index]:
            pixels[index] = self.drawing(index).pixels.reshape(-1)
            known[index] = 1
        return np.array(pixels[index]), None, index % 2

    def drawing(self, index: int) -> Drawing:
        """Draws an image; returns it with its contents."""
        d = self._dataset
        key = np.asarray([d.seed, SPLITS.index(self._split)], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index]))
        return draw(d.design, d.dashes, index % 2, rng.random)

    def _open(self, file: Path) -> tuple[np.memmap, np.memmap]:
        """The stored images, and a flag for each that is stored; both files are sparse zeros at first."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            shapes = {".pixels": (self._count, self._dataset.length), ".known": (self._count,)}
            for suffix, shape in shapes.items():
                with file.with_suffix(suffix).open("ab") as opened:
                    opened.truncate(math.prod(shape))
            pixels, known = (np.memmap(file.with_suffix(s), np.uint8, "r+", shape=shape) for s, shape in shapes.items())
        except OSError as error:
            raise ValueError(f"can't keep drawn images under {file.parent}: {error.strerror or error}") from error
        self._kept = (pixels, known)
        return self._kept


class Pathfinder:
    """Pathfinder.

    Args:
      size: side of the image, a key of :data:`DESIGNS`.
      dashes: number of dashes of a target path: 6 ("easy" in Long Range Arena), 9 ("intermediate") or 14 ("hard").
      num_train, num_validation, num_test: numbers of images.
      seed: seed of all images.
      cache: a folder in which drawn images are stored; None draws them each time.
      path: a released folder in place of drawn images, with ``metadata`` and ``imgs``
        (``.../pathfinder32/curv_contour_length_14``): its first 80 % are for training, the next 10 % for validation,
        the rest for the test.

    Raises:
      ValueError: an unknown size, or files that can't be read.
    """

    class_names = ("apart", "connected")
    symbols, levels, pairs, full = 256, True, False, True

    def __init__(
        self,
        size: int = 32,
        dashes: int = 14,
        num_train: int = 160_000,
        num_validation: int = 20_000,
        num_test: int = 20_000,
        seed: int = 0,
        cache: str | None = None,
        path: str | None = None,
    ):
        if size not in DESIGNS:
            raise ValueError(f"size={size}: images have {', '.join(map(str, DESIGNS))} pixels a side")
        if dashes < 2:
            raise ValueError(f"dashes={dashes}: a path has at least 2")
        self.design, self.dashes, self.seed = DESIGNS[size], dashes, seed
        self.length, self.splits, self.report = size * size, SPLITS, ""
        self._cache, self._counts = cache, {"train": num_train, "validation": num_validation, "test": num_test}
        self._released = None if path is None else Released(path, size)
        if self._released is not None:
            self.report = self._released.report

    def source(self, split: str) -> Source:
        """Returns the images of a split.

        Raises:
          ValueError: there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(unknown("split", split, SPLITS))
        if self._released is not None:
            return self._released.source(split)
        return Drawings(self, split, self._counts[split], self._cache)
