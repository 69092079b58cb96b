"""Dynamic programming written out: problems whose answer follows from a table that is computed entry by entry."""

from __future__ import annotations

import numpy as np

from suggestions import unknown
from tasks.procedural import Procedural
from tasks.registry import register

PROBLEMS = ("longest_increasing_subsequence", "edit_distance", "arithmetic")
LETTERS = 4  # alphabet of the strings of an edit distance
OPERATORS = ("+", "-", "*")


def increasing(numbers: list[int], window: int | None) -> list[int]:
    """Length of the longest increasing subsequence that ends at each number, whose members are less than ``window``
    apart.
    """
    lengths: list[int] = []
    for i, number in enumerate(numbers):
        before = range(0 if window is None else max(0, i - window + 1), i)
        lengths.append(1 + max((lengths[j] for j in before if numbers[j] < number), default=0))
    return lengths


def distances(a: list[int], b: list[int]) -> list[int]:
    """Edit distances between all non-empty prefixes of two strings, row by row for the prefixes of ``a``."""
    table = [list(range(len(b) + 1))]
    for i, left in enumerate(a, 1):
        row = [i]
        for j, right in enumerate(b, 1):
            row.append(min(table[-1][j] + 1, row[-1] + 1, table[-1][j - 1] + (left != right)))
        table.append(row)
    return [entry for row in table[1:] for entry in row[1:]]


@register("dynamic_programming")
class DynamicProgramming(Procedural):
    """Dynamic programming as a chain of thought (G. Feng et al., arXiv:2305.15408, section 4; for Mamba, R. Ren et al.,
    arXiv:2410.03810, section 5).

        5 2 8 6 3 | 1 1 2 2 2 | 2          longest increasing subsequence of 5 2 8 6 3
                   [1 1 2 2 2   2]

    The model must output all entries of the table, then the answer; with ``steps=False`` only the answer. The table of
    edit distances has a row for each letter of the first string. For arithmetic, modulo ``modulus``, each step is the
    expression after evaluating its first operation on two numbers. Training and validation have the same length. Chance
    is that of a uniform guess among the numbers, or among all tokens for arithmetic with steps.

    Args:
      length: numbers, letters of each string, or operands of training and validation.
      test_length: the same for test.
      problem: "longest_increasing_subsequence", "edit_distance" or "arithmetic".
      steps: whether the table is part of the sequence.
      values: upper bound (exclusive) of numbers and entries of the table.
      window: an entry of the subsequence table depends on at most ``window - 1`` entries before it; None for all.
      modulus: modulus of arithmetic.
      num_eval: number of examples of validation, and of test.
      seed: seed of all examples.

    Raises:
      ValueError: an unknown problem (similar names are suggested), ``values`` not above the lengths, or a ``window``
        below 2 or for another problem than subsequences.
    """

    paper = (124,)
    shortest = 2

    def __init__(
        self,
        length: int = 16,
        test_length: int = 24,
        problem: str = "longest_increasing_subsequence",
        steps: bool = True,
        values: int = 64,
        window: int | None = None,
        modulus: int = 7,
        num_eval: int = 512,
        seed: int = 0,
    ):
        if problem not in PROBLEMS:
            raise ValueError(unknown("problem", problem, PROBLEMS))
        if problem != "arithmetic" and max(length, test_length) >= values:
            raise ValueError(
                f"a table of length {max(length, test_length)} has entries up to it: values={values} must be more"
            )
        if window is not None and (window < 2 or problem != "longest_increasing_subsequence"):
            raise ValueError(f"window={window}: must be at least 2, and is for the longest increasing subsequence only")
        self.problem, self.steps, self.window = problem, steps, window
        self.numbers = modulus if problem == "arithmetic" else values
        # After the numbers come the mark between parts, the operators and two brackets.
        self.vocab_size = self.numbers + (6 if problem == "arithmetic" else 1)
        self.chance = 1 / (self.vocab_size if problem == "arithmetic" and steps else self.numbers)
        super().__init__(length, test_length, num_eval, seed)

    def make(self, rng: np.random.Generator, length: int, training: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        del training
        if self.problem == "longest_increasing_subsequence":
            given = rng.integers(0, self.numbers, length).tolist()
            table = [increasing(given, self.window)]
            answer = max(table[0])
        elif self.problem == "edit_distance":
            a, b = rng.integers(0, LETTERS, (2, length)).tolist()
            given, table = [*a, self.numbers, *b], [distances(a, b)]
            answer = table[0][-1]
        else:
            given = self._expression(rng, length)
            table = []
            while len(given if not table else table[-1]) > 1:
                table.append(self._reduced(given if not table else table[-1]))
            answer = table.pop()[0]
        parts = [given, *(table if self.steps else []), [answer]]
        whole: list[int] = []
        for part in parts:
            whole += [*part, self.numbers]
        whole.pop()
        tokens, targets = np.asarray(whole[:-1], np.int32), np.asarray(whole[1:], np.int32)
        asked = np.arange(len(tokens)) >= len(given)
        return tokens, targets, asked if self._marks_are_asked() else asked & (targets != self.numbers)

    def _marks_are_asked(self) -> bool:
        """Whether the model must also output the marks between parts, which only matters if parts have different
        lengths.
        """
        return self.problem == "arithmetic" and self.steps

    def _expression(self, rng: np.random.Generator, operands: int) -> list[int]:
        """A random expression with brackets around each operation but the last."""
        opening, closing = self.numbers + 4, self.numbers + 5
        parts = [[int(number)] for number in rng.integers(0, self.numbers, operands)]
        while len(parts) > 1:
            at = int(rng.integers(len(parts) - 1))
            operation = [*parts[at], self.numbers + 1 + int(rng.integers(len(OPERATORS))), *parts[at + 1]]
            parts[at : at + 2] = [operation if len(parts) == 2 else [opening, *operation, closing]]
        return parts[0]

    def _reduced(self, expression: list[int]) -> list[int]:
        """The expression after evaluating its first operation on two numbers."""
        place = next(
            i
            for i in range(1, len(expression))
            if expression[i - 1] < self.numbers < expression[i] <= self.numbers + 3 and expression[i + 1] < self.numbers
        )
        left, right = expression[place - 1], expression[place + 1]
        result = (left + right, left - right, left * right)[expression[place] - self.numbers - 1] % self.numbers
        wide = 2 if len(expression) > 3 else 1  # with its brackets
        return [*expression[: place - wide], result, *expression[place + wide + 1 :]]
