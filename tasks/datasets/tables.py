"""The user's own table of labeled texts or pairs of texts: lines of tab-separated columns.

A single file is split by its texts: the SHA-256 of a line's text puts 5 % of the lines into the test split and 5 % into
the validation split, and equal texts are always in the same split. In a folder, the splits are the files with "train",
"val" (or "valid", "validation", "dev", "eval") and "test" in their names, separated by dots, dashes or underscores; a
missing one is held out of "train" by the same rule. Texts stay on disk; only an index of lines is kept in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from suggestions import unknown
from tasks.datasets.split import SPLITS, split_of

Column = str | int
_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "validation")


class Lines:
    """Chosen columns of the lines of a file, with random access.

    Args:
      path: the file, UTF-8.
      columns: the columns, by their names in the first line, or without a header by their numbers from 0.
      header: whether the first line has the names.

    Raises:
      ValueError: no such column, or a line in which one of them is missing or empty.
    """

    def __init__(self, path: Path, columns: list[Column], header: bool = True):
        self.path, self.offsets = path, []
        with path.open("rb") as file:
            first = file.readline()
            names = first.decode(errors="replace").rstrip("\r\n").split("\t")
            self.places = [_place(path, column, names, header) for column in columns]
            self._said = [f"column {column!r}" for column in columns]
            if not header:
                file.seek(0)
            number = int(header)
            while True:
                offset, line = file.tell(), file.readline()
                if not line:
                    break
                number += 1
                if line.strip():
                    self._cells(line, number)
                    self.offsets.append(offset)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> list[bytes]:
        """The columns of a line, in the order of ``columns``."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            return self._cells(file.readline(), None)

    def column(self, which: int) -> list[bytes]:
        """Column ``which`` of ``columns`` for all lines."""
        with self.path.open("rb") as file:
            found = []
            for offset in self.offsets:
                file.seek(offset)
                found.append(self._cells(file.readline(), None)[which])
            return found

    def _cells(self, line: bytes, number: int | None) -> list[bytes]:
        cells = line.rstrip(b"\r\n").split(b"\t")
        for place, said in zip(self.places, self._said, strict=True):
            if place >= len(cells) or not cells[place].strip():
                raise ValueError(f"{self.path}, line {number}: {said} is empty; every line needs it")
        return [cells[place] for place in self.places]


def _place(path: Path, column: Column, names: list[str], header: bool) -> int:
    if header:
        if str(column) not in names:
            near = unknown("column", str(column), names)
            raise ValueError(f"{path}: {near}; a file without a header needs header=False and column numbers")
        return names.index(str(column))
    try:
        place = int(column)
    except ValueError:
        raise ValueError(f"{path}: with header=False columns are numbers from 0, not {column!r}") from None
    if not 0 <= place < len(names):
        raise ValueError(f"{path} has {len(names)} columns, the last is {len(names) - 1}: there is no column {place}")
    return place


def files_of(path: str | Path) -> dict[str, Path]:
    """The file of each split in a folder, or {"": file}.

    Raises:
      ValueError: no such file, no training file, or two files for a split.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return {"": root}
    found: dict[str, Path] = {}
    for file in sorted(root.glob("*.tsv")) if root.is_dir() else []:
        for part in re.split(r"[._\-]", file.stem):
            if (split := _NAMES.get(part.lower())) is not None:
                if split in found:
                    raise ValueError(f"{found[split]} and {file} are both named for the split {split!r}")
                found[split] = file
                break
    if "train" not in found:
        raise ValueError(f"there is no table at {path}: path= names a .tsv file, or a folder with one named train")
    return found


class Rows:
    """Some lines of a file as examples."""

    def __init__(
        self, lines: Lines, positions: np.ndarray, labels: dict[str, int], pairs: bool, read: Callable[[bytes], object]
    ):
        self._lines, self._positions, self._labels, self._pairs, self._read = lines, positions, labels, pairs, read

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple[object, object, int]:
        text, *second, label = self._lines[int(self._positions[index])]
        return self._read(text), self._read(second[0]) if self._pairs else None, self._labels[_label(label)]


def _label(cell: bytes) -> str:
    """The name of a label; for numbers, 1.0 is the same as 1."""
    text = cell.decode(errors="replace").strip()
    try:
        return str(int(float(text))) if float(text) == int(float(text)) else text
    except (ValueError, OverflowError):
        return text


def _ordered(names: set[str]) -> list[str]:
    """Sorted names of labels; numbers are sorted by value."""
    numbers = all(re.fullmatch(r"-?\d+", name) for name in names)
    return sorted(names, key=int) if numbers else sorted(names)


class Table:
    """The user's own table.

    Args:
      path: a .tsv file, or a folder of them.
      text, label: columns, by their names, or without a header by their numbers.
      text2: the column of the second text of a pair; "" for single texts.
      header: whether the first line has the names of the columns.

    Raises:
      ValueError: no such file or column, a line without a text, second text or label, a single class, or labels that
        the training file lacks.
    """

    symbols: int | None = None
    levels = False
    length: int | None = None
    full = False
    known: tuple[str, ...] | None = None
    """The names of all labels, if they are not taken from the file."""

    def __init__(
        self, path: str, text: Column = "text", label: Column = "label", text2: Column = "", header: bool = True
    ):
        self.pairs = text2 != ""
        columns = [text, *([text2] if self.pairs else []), label]
        files = files_of(path)
        lines = {split or "train": Lines(file, columns, header) for split, file in files.items()}
        labels = {split: [_label(cell) for cell in own.column(-1)] for split, own in lines.items()}
        self.class_names = self.known or tuple(_ordered(set(labels["train"])))
        if len(self.class_names) < 2:
            raise ValueError(
                f"{lines['train'].path} has the labels {self.class_names}: classification needs two or more"
            )
        for split, own in labels.items():
            if more := set(own) - set(self.class_names):
                which = "which is not one of its labels" if self.known else f"which {lines['train'].path} lacks"
                raise ValueError(f"{lines[split].path} has the label {min(more)!r}, {which}")
        places = {split: np.arange(len(own)) for split, own in lines.items()}
        lacking = [split for split in SPLITS if split not in lines]
        if lacking:
            held = np.asarray([split_of(text.decode(errors="replace")) for text in lines["train"].column(0)])
            places |= {split: np.flatnonzero(held == split) for split in lacking}
            places["train"] = np.flatnonzero(~np.isin(held, lacking))
        few = [split for split in SPLITS if not len(places[split])]
        if few:
            raise ValueError(
                f"{lines['train'].path} has too few lines to hold some out for {few[0]}: give a file of them"
            )
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self._splits = {
            split: Rows(lines.get(split, lines["train"]), places[split], numbers, self.pairs, self.read)
            for split in SPLITS
        }
        self.splits = SPLITS
        self.report = ""

    def read(self, cell: bytes) -> object:
        """Converts a cell to a sequence: here, its bytes."""
        return cell

    def source(self, split: str) -> Rows:
        """Returns the examples of a split."""
        return self._splits[split]
