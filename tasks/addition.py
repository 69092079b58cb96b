"""Addition of two numbers, digit by digit, in formats that decide whether a model generalizes to longer numbers."""

from __future__ import annotations

import numpy as np

from tasks.procedural import Procedural
from tasks.registry import register

PLUS, EQUALS, END, SPACE = range(10, 14)
"""Tokens after the digits; hints follow."""
HINTS = 102


@register("addition")
class Addition(Procedural):
    """Addition with formats (Y. Zhou et al., arXiv:2402.09371, section 3; trained up to 40 digits, tested up to 100).

        576 + 361 is    a6 b7 c5 + a1 b6 c3 = a7 b3 c9 .
                                              [a7 b3 c9 .]

    Digits are in reverse order, the least significant first, and each is preceded by a hint, the same for the same
    place of all three numbers: consecutive hints of an ordered set of 102, from a random start. Both training numbers
    have the same random length up to ``length`` digits, those of validation and test exactly the full length. The loss
    and the metrics are over the answer with its hints and its end token. Chance is 1 / vocab_size.

    Args:
      length: digits of the longest training and of the validation numbers.
      test_length: digits of the test numbers.
      reverse: the least significant digit first; else the most significant one.
      index_hints: whether hints precede the digits.
      zero_padding: the answer always has one digit more than the numbers, which may be 0.
      random_space: probability of a space before each token of the question, in training.
      num_eval: number of examples of validation, and of test.
      seed: seed of all examples.

    Raises:
      ValueError: numbers that are too long for the hints, or ``random_space`` not in [0, 1).
    """

    paper = (139,)
    monitor = "exact"

    def __init__(
        self,
        length: int = 40,
        test_length: int = 100,
        reverse: bool = True,
        index_hints: bool = True,
        zero_padding: bool = False,
        random_space: float = 0.0,
        num_eval: int = 512,
        seed: int = 0,
    ):
        longest = max(length, test_length)
        if index_hints and longest >= HINTS:
            raise ValueError(
                f"there are {HINTS} hints, one for each digit of an answer: at most {HINTS - 1} digits, not {longest}"
            )
        if not 0 <= random_space < 1:
            raise ValueError(f"random_space is a probability below 1, not {random_space}")
        self.reverse, self.index_hints, self.zero_padding = reverse, index_hints, zero_padding
        self.random_space = random_space
        self.vocab_size = 14 + (HINTS if index_hints else 0)
        self.chance = 1 / self.vocab_size
        super().__init__(length, test_length, num_eval, seed)

    def make(self, rng: np.random.Generator, length: int, training: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        size = int(rng.integers(1, length + 1)) if training else length
        numbers = rng.integers(0, 10, (2, size))  # the least significant digit first
        numbers[:, -1] = rng.integers(1 if size > 1 else 0, 10, 2)
        carried, total = 0, []
        for digit in numbers.sum(0).tolist():
            carried, last = divmod(digit + carried, 10)
            total.append(last)
        if carried or self.zero_padding:
            total.append(carried)
        start = 14 + int(rng.integers(0, HINTS - length)) if self.index_hints else 0
        first, second, answer = (self._written(digits, start) for digits in (*numbers.tolist(), total))
        question = [*first, PLUS, *second, EQUALS]
        if self.random_space and training:
            spaces = rng.random(len(question)) < self.random_space
            question = [
                token
                for token, space in zip(question, spaces, strict=True)
                for token in ([SPACE, token] if space else [token])
            ]
        whole = [*question, *answer, END]
        width = 2 if self.index_hints else 1
        longest = (2 if self.random_space else 1) * (2 * width * length + 2) + width * (length + 1) + 1
        tokens, targets = np.full(longest - 1, END, np.int32), np.full(longest - 1, END, np.int32)
        tokens[: len(whole) - 1], targets[: len(whole) - 1] = whole[:-1], whole[1:]
        place = np.arange(longest - 1)
        return tokens, targets, (place >= len(question) - 1) & (place < len(whole) - 1)

    def _written(self, digits: list[int], start: int) -> list[int]:
        """The tokens of a number; ``start`` is the hint of its least significant digit."""
        pairs = [[start + place, digit] if self.index_hints else [digit] for place, digit in enumerate(digits)]
        return [token for pair in (pairs if self.reverse else pairs[::-1]) for token in pair]
