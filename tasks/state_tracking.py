"""State tracking: the running product in a group, after every token.

Two procedural tasks. A model that only computes sums or fixed mixtures of its inputs can't solve them at every length;
permutations of five objects are harder than parity.
"""

from __future__ import annotations

import itertools

import numpy as np

from suggestions import unknown
from tasks.procedural import Procedural
from tasks.registry import register


def permutations(objects: int, even: bool = False) -> np.ndarray:
    """The multiplication table (order, order) of the permutations of ``objects`` objects, or of the even ones.

    Elements are numbered in lexicographic order, so that 0 is the identity; entry [a, b] is a after b.
    """
    found = [p for p in itertools.permutations(range(objects)) if not even or _is_even(p)]
    number = {p: i for i, p in enumerate(found)}
    return np.asarray([[number[tuple(a[i] for i in b)] for b in found] for a in found], np.int32)


def _is_even(permutation: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0


class RunningProduct(Procedural):
    """Base class: tokens are elements of a group, the target of each is the product of all tokens so far."""

    def __init__(self, table: np.ndarray, length: int, test_length: int, num_eval: int, seed: int):
        self.table, self.vocab_size, self.chance = table, len(table), 1 / len(table)
        super().__init__(length, test_length, num_eval, seed)

    def make(self, rng: np.random.Generator, length: int, training: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        del training
        tokens = rng.integers(0, self.vocab_size, length)
        targets = np.asarray(
            list(itertools.accumulate(tokens.tolist(), lambda product, new: int(self.table[new, product])))
        )
        return tokens, targets, np.ones(length, bool)


@register("parity")
class Parity(RunningProduct):
    """Parity of a bit string, at every bit (R. Grazzi et al., arXiv:2411.12537, section 5.1: trained up to 40 bits,
    tested up to 256).

        1 0 1 1
       [1 1 0 1]

    Chance is 1/2.

    Args:
      length: number of bits of training and validation.
      test_length: number of bits of the test.
      num_eval: number of examples of validation, and of test.
      seed: seed of all examples.
    """

    def __init__(self, length: int = 40, test_length: int = 256, num_eval: int = 512, seed: int = 0):
        super().__init__(np.asarray([[0, 1], [1, 0]], np.int32), length, test_length, num_eval, seed)


_GROUPS = {"S3": (3, False), "S4": (4, False), "S5": (5, False), "A4": (4, True), "A5": (5, True)}


@register("permutation_tracking")
class PermutationTracking(RunningProduct):
    """The word problem of a permutation group (W. Merrill et al., arXiv:2404.08819, section 5): the product of all
    permutations so far.

    S3 and S4 are solvable groups, A5 (60 elements) and S5 (120) are not: no fixed number of layers of a transformer or
    a diagonal state space model can track them at every length. Chance is 1 / order.

    Args:
      length: number of permutations of training and validation.
      test_length: number of permutations of the test.
      group: "S3", "S4", "S5", "A4" or "A5".
      num_eval: number of examples of validation, and of test.
      seed: seed of all examples.

    Raises:
      ValueError: an unknown group (similar names are suggested).
    """

    def __init__(self, length: int = 32, test_length: int = 128, group: str = "A5", num_eval: int = 512, seed: int = 0):
        if group not in _GROUPS:
            raise ValueError(unknown("group", group, _GROUPS))
        super().__init__(permutations(*_GROUPS[group]), length, test_length, num_eval, seed)
