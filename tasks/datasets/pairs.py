"""Data sets of pairs of a source and its target with one small interface: texts as bytes, or tokens, with random
access.

``create(name, **options)`` makes one: "reverse" and "sort" are computed, "file" is the user's own pairs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tasks.datasets.split import HELD_OUT, SPLITS, split_of
from tasks.registry import construct_named

Pair = tuple[Any, Any]
"""A source and its target: both UTF-8 bytes, or both arrays of tokens."""


class Pairs(Protocol):
    """The pairs of a split."""

    def __len__(self) -> int:
        """The number of pairs."""
        ...

    def __getitem__(self, index: int, /) -> Pair:
        """Returns one pair."""
        ...


class PairDataset(Protocol):
    """A set of pairs.

    Attributes:
      splits: names of the splits.
      vocab_size: number of different tokens, of which 0 is padding and 1 ends a sequence; None for texts.
      longest: maximum number of tokens of sources and targets; None for texts.
      report: remarks about the data for the user; "" for none.
    """

    splits: tuple[str, ...]
    vocab_size: int | None
    longest: int | None
    report: str

    def pairs(self, split: str) -> Pairs:
        """Returns the pairs of one of ``splits``."""
        ...


NUM_TRAIN = 2**24
"""Number of pairs of an epoch of a computed training split."""
FIRST = 2
"""The token of the first symbol."""


class Reverse:
    """Random symbols; the target is the source reversed.

    Args:
      length, shortest: number of symbols of the longest and of the shortest source; lengths are uniform.
      symbols: size of the alphabet, without the padding token 0 and the end token 1.
      num_eval: number of pairs of validation, and of test.
      seed: seed of all pairs.

    Raises:
      ValueError: ``shortest`` not from 1 to ``length``, fewer than 2 symbols, or ``num_eval`` below 1.
    """

    splits: tuple[str, ...] = SPLITS
    report = ""

    def __init__(self, length: int = 12, shortest: int = 1, symbols: int = 16, num_eval: int = 512, seed: int = 0):
        if not 1 <= shortest <= length:
            raise ValueError(f"shortest is from 1 to length={length}, not {shortest}")
        if symbols < 2 or num_eval < 1:
            raise ValueError(f"at least 2 symbols and 1 pair to evaluate on: symbols={symbols}, num_eval={num_eval}")
        self.shortest, self.symbols, self.num_eval, self.seed = shortest, symbols, num_eval, seed
        self.vocab_size: int | None = symbols + FIRST
        self.longest: int | None = length

    def pairs(self, split: str) -> Pairs:
        """Returns the pairs of a split, each a function of (seed, split, index) alone."""
        return _Computed(self, SPLITS.index(split), NUM_TRAIN if split == "train" else self.num_eval)

    def target(self, source: np.ndarray) -> np.ndarray:
        """Returns what is to be written for a source."""
        return source[::-1]


class Sort(Reverse):
    """Random symbols; the target is the source in ascending order. Args as in :class:`Reverse`."""

    def target(self, source: np.ndarray) -> np.ndarray:
        """Returns what is to be written for a source."""
        return np.sort(source)


class _Computed:
    def __init__(self, dataset: Reverse, split: int, count: int):
        self._dataset, self._split, self._count = dataset, split, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Pair:
        d, longest = self._dataset, self._dataset.longest or 0
        rng = np.random.Generator(np.random.Philox(key=[d.seed, self._split], counter=[0, 0, 0, index]))
        source = FIRST + rng.integers(0, d.symbols, int(rng.integers(d.shortest, longest + 1)))
        return source, d.target(source)


class PairFile:
    """The user's own pairs: lines of a ``.tsv`` file, with source and target separated by a tab, or objects of a
    ``.jsonl`` file.

    Each pair is in one split, by the SHA-256 of its source: 5 % test, 5 % validation, so that a source is never in two
    splits. If there are so few that a split would be empty, the last tenth is held out instead. A folder has a file for
    each split instead, "train", "validation" and, if any, "test".

    Args:
      path: a file, or a folder of files named by split.
      source, target: names of an object's fields, or of the columns of a ``.tsv`` file; a first line with both names is
        a header and not a pair.

    Raises:
      ValueError: no such file, another kind of file, a line without source and target, or too few pairs.
    """

    vocab_size: int | None = None
    longest: int | None = None

    def __init__(self, path: str, source: str = "source", target: str = "target"):
        root = Path(path).expanduser()
        if not root.exists():
            raise ValueError(f"there are no pairs at {path}: path= names a .tsv or .jsonl file, or a folder of them")
        self.report = ""
        if root.is_dir():
            files = {split: _file_of(root, split) for split in SPLITS}
            if missing := [split for split in SPLITS[:2] if files[split] is None]:
                raise ValueError(f"{path} has no file {missing[0]}.tsv or {missing[0]}.jsonl")
            self._pairs = {split: _read(file, source, target) for split, file in files.items() if file is not None}
        else:
            pairs = _read(root, source, target)
            split = {name: [pair for pair in pairs if split_of(pair[0].decode()) == name] for name in SPLITS}
            if not all(split.values()):
                held = max(int(len(pairs) * HELD_OUT), 1)
                ends = (len(pairs) - 2 * held, len(pairs) - held)
                split = dict(zip(SPLITS, (pairs[: ends[0]], pairs[ends[0] : ends[1]], pairs[ends[1] :]), strict=True))
                self.report = f"{len(pairs)} pairs are too few to be split by their sources: the last are held out"
            self._pairs = split
        if empty := [name for name, found in self._pairs.items() if not found]:
            raise ValueError(f"{path} has too few pairs: none are left for {empty[0]}")
        self.splits = tuple(self._pairs)

    def pairs(self, split: str) -> Sequence[Pair]:
        """Returns the pairs of a split, texts."""
        return self._pairs[split]


def _file_of(folder: Path, split: str) -> Path | None:
    found = [folder / f"{split}{suffix}" for suffix in (".tsv", ".jsonl")]
    return next((file for file in found if file.is_file()), None)


def _read(file: Path, source: str, target: str) -> list[Pair]:
    if file.suffix not in (".tsv", ".jsonl"):
        raise ValueError(f"{file} is neither .tsv nor .jsonl: pairs are read from these")
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from error
    numbered = [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    columns = (0, 1)
    if file.suffix == ".tsv" and numbered and {source, target} <= set(head := numbered[0][1].split("\t")):
        columns, numbered = (head.index(source), head.index(target)), numbered[1:]
    found = []
    for number, line in numbered:
        texts: list[Any]
        if file.suffix == ".tsv":
            fields = line.split("\t")
            texts = [fields[column] if column < len(fields) else None for column in columns]
        else:
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} of {file} is not JSON: {error}") from error
            texts = [row.get(name) if isinstance(row, dict) else None for name in (source, target)]
        if not all(isinstance(text, str) for text in texts):
            what = "two columns" if file.suffix == ".tsv" else f"the texts {source!r} and {target!r}"
            raise ValueError(f"line {number} of {file} lacks {what}: choose others by source= and target=")
        found.append(tuple(text.encode() for text in texts))
    return found  # type: ignore[return-value]


PAIRS = {"reverse": "pairs.Reverse", "sort": "pairs.Sort", "file": "pairs.PairFile"}
"""Classes by the name of the set."""


def create(name: str, **options: Any) -> PairDataset:
    """Makes a set of pairs.

    Raises:
      ValueError: an unknown name or option (similar ones are suggested), or data that can't be used.
    """
    return construct_named("set of pairs", PAIRS, name, options)
