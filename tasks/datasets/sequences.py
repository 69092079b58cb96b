"""Labeled sequences and pairs of sequences with one small interface: texts or arrays of symbols, in random access.

``create(name, **options)`` makes one: "listops" and "pathfinder" are computed, "images" reads any image set as rows of
gray pixels, "tsv" is the user's own table, "folder" the user's own texts, and "tfds" any text classification set that
TFDS has prepared as array_record.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from tasks.registry import construct_named

Sequence = bytes | np.ndarray
"""A text, UTF-8, or whole numbers (length,) from 0 to ``symbols - 1``."""


class Source(Protocol):
    """The labeled sequences of a split."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int, /) -> tuple[Sequence, Sequence | None, int]:
        """Returns a sequence, the second one of a pair, and the label."""
        ...


class SequenceDataset(Protocol):
    """A labeled set of sequences.

    Attributes:
      class_names: name of each label.
      splits: the splits there are.
      report: what the user should know about the data (files left out, say); "" for nothing.
      pairs: whether an example is two sequences.
      symbols: how many there are; None for texts.
      levels: whether symbols are levels of a quantity, as of gray, in their order.
      length: of the longest sequence; None where that is not known.
      full: whether all sequences have that length.
    """

    class_names: tuple[str, ...]
    splits: tuple[str, ...]
    report: str
    pairs: bool
    symbols: int | None
    levels: bool
    length: int | None
    full: bool

    def source(self, split: str) -> Source:
        """Returns the examples of one of ``splits``."""
        ...


SEQUENCES = {
    "folder": "labeled_texts.TextFolders",
    "images": "image_sequences.ImageSequences",
    "listops": "listops.ListOps",
    "pathfinder": "pathfinder.Pathfinder",
    "tfds": "labeled_texts.PreparedTexts",
    "tsv": "tables.Table",
}
"""Classes by the name of the data set."""


def create(name: str, **options: Any) -> SequenceDataset:
    """Makes a data set.

    Raises:
      ValueError: an unknown name or option (near ones are named), or data that can't be used.
    """
    return construct_named("set of sequences", SEQUENCES, name, options)
