"""Images as sequences: any data set of images (:mod:`tasks.datasets`), row by row, with a symbol for each gray level.

Gray is 0.299 R + 0.587 G + 0.114 B. Long Range Arena (arXiv:2011.04006) does this with CIFAR-10: 1024 pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from tasks import datasets

GRAYS = 256


class Pixels:
    """The images of a split as sequences."""

    def __init__(self, source: datasets.Source, size: int, in_memory: bool):
        self._source, self._size = source, size
        self._kept: dict[int, tuple[np.ndarray, int]] | None = {} if in_memory else None

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, None, int]:
        if self._kept is not None and index in self._kept:
            pixels, label = self._kept[index]
            return pixels, None, label
        image, label = self._source[index]
        image = image.convert("L")
        if image.size != (self._size, self._size):
            image = image.resize((self._size, self._size), Image.Resampling.BICUBIC)
        pixels = np.asarray(image).reshape(-1)
        if self._kept is not None:
            self._kept[index] = (pixels, label)
        return pixels, None, label


class ImageSequences:
    """An image set as sequences of gray levels.

    Args:
      images: the name of an image set ("digits", "folder", "tfds"), or a mapping with "name" and its options.
      size: side in pixels of the squares to which images are resized; None for that of the first image.

    Raises:
      ValueError: an unknown set or option, or no ``size`` and a first image that is not square.
    """

    symbols, levels, pairs, full = GRAYS, True, False, True

    def __init__(self, images: str | dict[str, Any] = "digits", size: int | None = None):
        options = {"name": images} if isinstance(images, str) else dict(images)
        if "name" not in options:
            raise ValueError("images needs name=, such as 'digits'")
        self._dataset = datasets.create(str(options.pop("name")), **options)
        self.class_names, self.splits = self._dataset.class_names, self._dataset.splits
        self.report = self._dataset.report
        first = self._dataset.source("train")[0][0]
        if size is None and first.width != first.height:
            raise ValueError(f"the first image has {first.width} x {first.height} pixels: size= makes squares of all")
        self._size = size or first.width
        self.length = self._size**2
        self._splits: dict[str, Pixels] = {}

    def source(self, split: str) -> Pixels:
        """Returns the images of a split."""
        if split not in self._splits:
            self._splits[split] = Pixels(self._dataset.source(split), self._size, self._dataset.in_memory)
        return self._splits[split]
