"""ListOps: nested operations on lists of digits, and the digit to which they evaluate.

    [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]   ->   5

N. Nangia, S. Bowman (arXiv:1804.06028), with the sizes of Long Range Arena (Y. Tay et al., arXiv:2011.04006): the root
is at depth 1; a node above ``max_depth`` is an operation with probability 1/4, else a digit; an operation, one of MIN,
MAX, MED and SM with equal probability, has 2 to 10 arguments; trees of more than 500 and fewer than 2000 tokens are
kept; 96 000 are for training, 2000 for validation and 2000 for the test. MED is the median, rounded down, and SM the
sum modulo 10. A token is a digit, an operation with its bracket, or the closing bracket; the parentheses of the
released files, which show their binary trees, are not tokens.

A tree is a function of (seed, split, index): the first tree of a permitted length that is sampled from the example's
own random stream. The authors' files are sampled differently, and in an order that varies from run to run; ``path=``
reads those.
"""

from __future__ import annotations

import random

import numpy as np

from suggestions import unknown
from tasks.datasets.split import SPLITS
from tasks.datasets.tables import Table

OPERATIONS = ("MIN", "MAX", "MED", "SM")
TOKENS = (*map(str, range(10)), *(f"[{name}" for name in OPERATIONS), "]")
_SYMBOL = {token.encode(): symbol for symbol, token in enumerate(TOKENS)}
_FIRST, _END = 10, len(TOKENS) - 1
_PROBABILITY = 0.25


def apply(operation: int, arguments: list[int]) -> int:
    """The result of an operation, an index into :data:`OPERATIONS`, on digits."""
    if operation == 0:
        return min(arguments)
    if operation == 1:
        return max(arguments)
    if operation == 3:
        return sum(arguments) % 10
    ranked, middle = sorted(arguments), len(arguments) // 2
    return ranked[middle] if len(ranked) % 2 else (ranked[middle - 1] + ranked[middle]) // 2


def draw(rng: random.Random, max_depth: int, max_args: int, longest: int) -> tuple[list[int], int] | None:
    """Samples one tree: its symbols and its value; None if it has more than ``longest`` symbols.

    It calls ``rng.random()`` only, which gives the same numbers in every version of Python.
    """
    symbols: list[int] = []
    open_: list[tuple[int, int, list[int]]] = []  # operation, its number of arguments, known arguments
    number = rng.random
    while True:
        if len(symbols) + len(open_) > longest:
            return None
        if len(open_) + 1 < max_depth and number() < _PROBABILITY:
            open_.append((int(number() * len(OPERATIONS)), 2 + int(number() * (max_args - 1)), []))
            symbols.append(_FIRST + open_[-1][0])
            continue
        value = int(number() * 10)
        symbols.append(value)
        while True:
            if not open_:
                return (symbols, value) if len(symbols) <= longest else None
            operation, count, known = open_[-1]
            known.append(value)
            if len(known) < count:
                break
            value = apply(operation, known)
            symbols.append(_END)
            open_.pop()


def symbols_of(text: bytes) -> np.ndarray:
    """The symbols of a line of a released file.

    Raises:
      ValueError: a token that is not part of ListOps.
    """
    tokens = [token for token in text.split() if token not in (b"(", b")")]
    strange = next((token for token in tokens if token not in _SYMBOL), None)
    if strange is not None:
        raise ValueError(f"{strange.decode(errors='replace')!r} is not a token of ListOps: {' '.join(TOKENS)}")
    return np.asarray([_SYMBOL[token] for token in tokens], np.uint8)


class Trees:
    """Drawn trees as examples."""

    def __init__(self, dataset: ListOps, split: str, count: int):
        self._dataset, self._split, self._count = dataset, split, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[np.ndarray, None, int]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        d = self._dataset
        rng = random.Random(f"listops {d.seed} {self._split} {index}")
        while True:
            tree = draw(rng, d.max_depth, d.max_args, d.length)
            if tree is not None and len(tree[0]) >= d.shortest:
                return np.asarray(tree[0], np.uint8), None, tree[1]


class _Released(Table):
    known = tuple(map(str, range(10)))

    def __init__(self, path: str):
        super().__init__(path, text="Source", label="Target")

    def read(self, cell: bytes) -> object:
        return symbols_of(cell)


class ListOps:
    """ListOps.

    Args:
      length: maximum number of tokens; the paper has fewer than 2000.
      shortest: minimum number of tokens; the paper has more than 500.
      max_depth: maximum depth of a digit; the root is at depth 1.
      max_args: maximum number of arguments of an operation.
      num_train, num_validation, num_test: numbers of trees.
      seed: seed of all trees.
      path: a folder with the authors' files (``basic_train.tsv``, ``basic_val.tsv``, ``basic_test.tsv``), which replace
        sampled trees; longer ones are cut by the task.

    Raises:
      ValueError: sizes that (almost) no tree has, or files that can't be read.
    """

    class_names = tuple(map(str, range(10)))
    symbols: int = len(TOKENS)
    levels, pairs, full = False, False, False

    def __init__(
        self,
        length: int = 1999,
        shortest: int = 501,
        max_depth: int = 10,
        max_args: int = 10,
        num_train: int = 96_000,
        num_validation: int = 2000,
        num_test: int = 2000,
        seed: int = 0,
        path: str | None = None,
    ):
        if max_args < 2:
            raise ValueError(f"max_args={max_args}: an operation has at least 2 arguments")
        if not 1 <= shortest <= length:
            raise ValueError(f"shortest={shortest} and length={length}: a tree has 1 to length tokens")
        most = 1
        for _ in range(max_depth - 1):
            most = min(2 + max_args * most, 10**9)
        if shortest > most // 2:
            raise ValueError(
                f"shortest={shortest}: trees of max_depth={max_depth} and max_args={max_args} have at most {most} "
                f"tokens, and almost none has half as many"
            )
        self.length, self.shortest, self.max_depth, self.max_args, self.seed = (
            length,
            shortest,
            max_depth,
            max_args,
            seed,
        )
        self.splits, self.report = SPLITS, ""
        self._counts = {"train": num_train, "validation": num_validation, "test": num_test}
        self._released = None if path is None else _Released(path)

    def source(self, split: str) -> Trees | object:
        """Returns the trees of a split.

        Raises:
          ValueError: there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(unknown("split", split, SPLITS))
        if self._released is None:
            return Trees(self, split, self._counts[split])
        return self._released.source(split)
