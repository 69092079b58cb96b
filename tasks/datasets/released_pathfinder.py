"""The released folders of Pathfinder: ``imgs/N/sample_M.png`` and ``metadata/*.npy`` with a line for each image.

Despite the suffix, some metadata files are NumPy arrays and others, those of Long Range Arena, are text. Either way the
columns are folder, file, number, label and the settings. Empty image files, of which the released set has some, are
left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from suggestions import unknown

_PARTS = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}


def _lines(file: Path) -> list[list[str]]:
    if file.read_bytes()[:6] == b"\x93NUMPY":
        return [[str(cell) for cell in row] for row in np.load(file, allow_pickle=False)]
    return [line.split() for line in file.read_text().splitlines() if line.strip()]


class _Images:
    def __init__(self, files: list[tuple[Path, int]], size: int):
        self._files, self._size = files, size

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, None, int]:
        file, label = self._files[index]
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("L"))
        if pixels.shape != (self._size, self._size):
            raise ValueError(
                f"{file} has {pixels.shape[1]} x {pixels.shape[0]} pixels, not {self._size} x {self._size}"
            )
        return pixels.reshape(-1), None, label


class Released:
    """The images of a folder.

    Args:
      path: the folder of a difficulty, or one with ``curv_contour_length_14`` in it.
      size: pixels of a side.

    Raises:
      ValueError: no metadata, or fewer than 10 images.
    """

    def __init__(self, path: str, size: int):
        root = Path(path).expanduser()
        root = root / "curv_contour_length_14" if (root / "curv_contour_length_14").is_dir() else root
        files = sorted((root / "metadata").glob("*.npy"))
        if not files:
            raise ValueError(f"{root} has no metadata/*.npy: path= names a released folder of Pathfinder")
        named = [(root / line[0] / line[1], int(line[3])) for file in files for line in _lines(file)]
        self._files = [(file, label) for file, label in named if file.is_file() and file.stat().st_size]
        if len(self._files) < 10:
            raise ValueError(f"{root} has {len(self._files)} of the {len(named)} images that its metadata name")
        left = len(named) - len(self._files)
        self.report = f"left out {left} images that are missing or empty" if left else ""
        self._size = size

    def source(self, split: str) -> _Images:
        """Returns the images of a split.

        Raises:
          ValueError: there is no such split.
        """
        if split not in _PARTS:
            raise ValueError(unknown("split", split, _PARTS))
        low, high = (int(part * len(self._files)) for part in _PARTS[split])
        return _Images(self._files[low:high], self._size)
