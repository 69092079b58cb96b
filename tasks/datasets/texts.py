"""Data sets of texts with one small interface: documents as bytes, with random access, in three splits.

``create(name, **options)`` makes one: "stdlib" is embedded (the source of Python's own library),
"files" is the user's own text, "tfds" any text set that TFDS has prepared as array_record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tasks.registry import construct_named


class TextDataset(Protocol):
    """A set of texts.

    Attributes:
      splits: names of the splits.
      report: remarks about the data for the user, such as files left out; "" for none.
      cache: path, without suffix, of a file in which its tokens may be stored; None if they fit into memory.
    """

    splits: tuple[str, ...]
    report: str
    cache: str | None

    def documents(self, split: str) -> Sequence[bytes]:
        """Returns the documents of one of ``splits``, UTF-8."""
        ...


TEXTS = {"stdlib": "stdlib_text.StandardLibrary", "files": "text_files.TextFiles", "tfds": "prepared_text.PreparedText"}
"""Classes by the name of the text set."""


def create(name: str, **options: Any) -> TextDataset:
    """Makes a text set.

    Raises:
      ValueError: an unknown name or option (similar ones are suggested), or data that can't be used.
    """
    return construct_named("text set", TEXTS, name, options)
