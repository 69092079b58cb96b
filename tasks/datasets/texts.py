"""Sets of texts with one small interface: documents as bytes, in random access, in three splits.

``create(name, **options)`` makes one: "stdlib" is embedded (the source of Python's own library),
"files" is the user's own text, "tfds" any text set that TFDS has prepared as array_record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tasks.registry import construct, unknown

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.05
"""The part of all documents that each of the validation and test splits gets."""


class TextDataset(Protocol):
    """A set of texts.

    Attributes:
      splits: the splits there are.
      report: what the user should know about the data (files left out, say); "" for nothing.
      cache: where a file of its tokens may be kept, without suffix; None if it is small enough for memory.
    """

    splits: tuple[str, ...]
    report: str
    cache: str | None

    def documents(self, split: str) -> Sequence[bytes]:
        """Returns the documents of one of ``splits``, UTF-8."""
        ...


def split_of(key: str) -> str:
    """The split of the document named ``key``: by its SHA-256 alone, so that no other document moves it."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    return "test" if place < HELD_OUT else "validation" if place < 2 * HELD_OUT else "train"


def _stdlib() -> Callable[..., TextDataset]:
    from tasks.datasets.stdlib_text import StandardLibrary

    return StandardLibrary


def _files() -> Callable[..., TextDataset]:
    from tasks.datasets.text_files import TextFiles

    return TextFiles


def _prepared() -> Callable[..., TextDataset]:
    from tasks.datasets.prepared_text import PreparedText

    return PreparedText


# imported when asked for: TFDS takes a second
_DATASETS: dict[str, Callable[[], Callable[..., TextDataset]]] = {"stdlib": _stdlib, "files": _files, "tfds": _prepared}


def create(name: str, **options: Any) -> TextDataset:
    """Makes a text set.

    Raises:
      ValueError: an unknown name or option (near ones are named), or data that can't be used.
    """
    if name not in _DATASETS:
        raise ValueError(unknown("text set", name, _DATASETS))
    return construct(f"text set {name}", _DATASETS[name](), options)
