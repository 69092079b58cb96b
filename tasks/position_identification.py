"""Position identification: two tasks that separate relative positional encodings from universal ones."""

from __future__ import annotations

import numpy as np

from suggestions import unknown
from tasks.procedural import Procedural
from tasks.registry import register

PROBLEMS = ("position", "even_tokens")
SPARE = 20
"""Tokens that random sequences do not use, for a constant answer."""


@register("position_identification")
class PositionIdentification(Procedural):
    """The synthetic tasks of URPE (S. Luo et al., NeurIPS 2022, arXiv:2205.13401, section 5.1).

        position       7 3 9 3        even_tokens    7 3 9 4
                      [1 2 3 4]                     [3 4 . .]

    Tokens are random. The target of each is its own position, counted from 1; or the targets are the tokens of even
    positions, in order from the first position on, followed by a constant. The paper has 128 tokens of a vocabulary of
    1000. The model should have no positions except those of its mixer. With a ``test_length`` above ``length``
    positions occur in the test that training never shows. Chance is 1 / length for positions, and a little more than
    one half for even tokens, because of the constant.

    Args:
      length: number of tokens of training and validation.
      test_length: number of tokens of the test; None for ``length``.
      problem: "position" or "even_tokens".
      vocab_size: number of tokens and answers; random tokens are the first ``vocab_size`` - 20.
      num_eval: number of examples of validation, and of test.
      seed: seed of all examples.

    Raises:
      ValueError: an unknown problem (similar names are suggested), or a ``vocab_size`` that is too small.
    """

    paper = (1,)
    shortest = 2

    def __init__(
        self,
        length: int = 128,
        test_length: int | None = None,
        problem: str = "position",
        vocab_size: int = 1000,
        num_eval: int = 512,
        seed: int = 0,
    ):
        if problem not in PROBLEMS:
            raise ValueError(unknown("problem", problem, PROBLEMS))
        longest = max(length, test_length or 0)
        if vocab_size <= SPARE + 1 or (problem == "position" and vocab_size <= longest):
            raise ValueError(
                f"vocab_size={vocab_size}: {SPARE} tokens are reserved, and positions up to {longest} are "
                f"answers: take at least {max(SPARE + 2, longest + 1)}"
            )
        self.problem, self.vocab_size = problem, vocab_size
        symbols = vocab_size - SPARE
        self.chance = 1 / length if problem == "position" else (length // 2 / symbols + (length + 1) // 2) / length
        super().__init__(length, test_length or length, num_eval, seed)

    def make(self, rng: np.random.Generator, length: int, training: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        del training
        tokens = rng.integers(0, self.vocab_size - SPARE, length)
        targets = np.arange(1, length + 1)
        if self.problem == "even_tokens":
            targets = np.full(length, self.vocab_size - 2)
            targets[: length // 2] = tokens[1::2]
        return tokens, targets, np.ones(length, bool)
