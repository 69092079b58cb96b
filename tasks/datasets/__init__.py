"""Data sets of labeled images with one small interface: PIL images and integer labels, with random access.

``create(name, **options)`` makes one: "digits" is embedded, "folder" is the user's own images, "tfds"
any image classification set that TFDS has prepared as array_record.
"""

from __future__ import annotations

from typing import Any, Protocol

from PIL import Image

from tasks.registry import construct_named


class Source(Protocol):
    """The labeled images of a split."""

    def __len__(self) -> int:
        """The number of images."""
        ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]:
        """Returns an upright image, of mode "L" or "RGB", and its label."""
        ...


class ImageDataset(Protocol):
    """A labeled set of images.

    Attributes:
      class_names: name of each label.
      splits: names of the splits.
      in_memory: whether it is small enough to keep its resized images in memory.
      report: remarks about the data for the user, such as images left out; "" for none.
    """

    class_names: tuple[str, ...]
    splits: tuple[str, ...]
    in_memory: bool
    report: str

    def source(self, split: str) -> Source:
        """Returns the images of one of ``splits``."""
        ...


DATASETS = {"digits": "digits.Digits", "folder": "folder.Folder", "tfds": "prepared.Prepared"}
"""Classes by the name of the data set."""


def create(name: str, **options: Any) -> ImageDataset:
    """Makes a data set.

    Raises:
      ValueError: an unknown name or option (similar ones are suggested), or data that can't be used.
    """
    return construct_named("data set", DATASETS, name, options)
