"""Positions from tokens alone: the two tasks on which relative positions differ from universal ones."""

from __future__ import annotations

import numpy as np

from suggestions import unknown
from tasks.procedural import Procedural
from tasks.registry import register

PROBLEMS = ("position", "even_tokens")
SPARE = 20
"""Numbers that no random token has, for a constant answer."""


@register("position_identification")
class PositionIdentification(Procedural):
    """The synthetic tasks of URPE (S. Luo et al., NeurIPS 2022, arXiv:2205.13401, section 5.1).

        position       7 3 9 3        even_tokens    7 3 9 4
                      [1 2 3 4]                     [3 4 . .]

    Tokens are random. Asked for at each is its own position, counted from 1, which no token holds; or the tokens of
    even positions, one after the other from the first position on, and behind them one constant. The paper has 128
    tokens of a vocabulary of 1000. A model is to have no positions but those of its mixer. Training, validation and
    test have lengths of their own; a position that training has not is never predicted. Chance is 1 / length of the
    positions, of even tokens one half and a little: the constant.

    Args:
      length: tokens.
      test_length: None is ``length``.
      problem: "position" or "even_tokens".
      vocab_size: tokens and answers; random tokens are the first ``vocab_size`` - 20.
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
                f"vocab_size={vocab_size}: {SPARE} numbers are no random tokens, and positions up to {longest} are "
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
