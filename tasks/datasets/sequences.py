"""Labeled sequences and pairs of sequences with one small interface: texts or arrays of symbols, with random access.

``create(name, **options)`` makes one: "listops" and "pathfinder" are computed, "images" reads any image set as
sequences of gray pixels, "tsv" is the user's own table, "folder" the user's own texts, and "tfds" any text
classification set that TFDS has prepared as array_record.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from tasks.registry import construct_named

Sequence = bytes | np.ndarray
"""A text, UTF-8, or integers (length,) from 0 to ``symbols - 1``."""


class Source(Protocol):
    """The labeled sequences of a split."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, index: int, /) -> tuple[Sequence, Sequence | None, int]:
        """Returns a sequence, the second sequence of a pair or None, and the label."""
        ...


class SequenceDataset(Protocol):
    """A labeled set of sequences.

    Attributes:
      class_names: name of each label.
      splits: names of the splits.
      report: remarks about the data for the user, such as files left out; "" for none.
      pairs: whether an example is a pair of sequences.
      symbols: number of different symbols; None for texts.
      levels: whether symbols are ordered levels of a quantity, such as gray levels.
      length: length of the longest sequence; None if unknown.
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
      ValueError: an unknown name or option (similar ones are suggested), or data that can't be used.
    """
    return construct_named("set of sequences", SEQUENCES, name, options)
