"""The fifteen problems of Neural Networks and the Chomsky Hierarchy (Delétang et al., ICLR 2023, arXiv:2207.02098).

Randomized Positional Encodings (Ruoss et al., ACL 2023, arXiv:2305.16843) are evaluated on them. They are grouped by
the automaton that solves them: a finite one ("regular"), one with a stack ("dcf", deterministic context-free) and one
with a tape ("cs", context-sensitive). Symbols are numbered as in the authors' code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from suggestions import unknown
from tasks.procedural import Procedural
from tasks.registry import register

MODULUS = 5
STOP = 2
"""Ends an answer of unknown length, and separates two numbers."""
Draw = Callable[[np.random.Generator, int], list[int]]
Solve = Callable[[list[int]], list[int]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One of the fifteen problems.

    Attributes:
      level: "regular", "dcf" or "cs".
      symbols, answers: number of different symbols of inputs and of answers.
      draw: samples an input of n symbols, or n - 1 if the problem has no input of n.
      solve: returns the answer to an input.
      size: maximum number of symbols of the answer to an input of n symbols.
      shortest: minimum length of inputs; the authors' code has fixed answers for shorter ones.
    """

    level: Literal["regular", "dcf", "cs"]
    symbols: int
    answers: int
    draw: Draw
    solve: Solve
    size: Callable[[int], int] = lambda n: 1
    shortest: int = 1


def _string(symbols: int) -> Draw:
    return lambda rng, n: rng.integers(0, symbols, n).tolist()


def _sum_of_products(tokens: list[int]) -> int:
    """The value, modulo 5, of alternating digits and operators, with the usual precedence of products."""
    total, product, sign = 0, tokens[0], 1
    for operator, digit in zip(tokens[1::2], tokens[2::2], strict=True):
        if operator == MODULUS + 2:
            product *= digit
        else:
            total, product, sign = total + sign * product, digit, 1 if operator == MODULUS else -1
    return (total + sign * product) % MODULUS


def _alternating(rng: np.random.Generator, n: int) -> list[int]:
    """Alternating digits and operators + - *: an odd number of symbols."""
    tokens = rng.integers(0, MODULUS, n - 1 + n % 2)
    tokens[1::2] = MODULUS + rng.integers(0, 3, len(tokens) // 2)
    return tokens.tolist()


PLUS, MINUS, TIMES = range(MODULUS, MODULUS + 3)


@dataclasses.dataclass(frozen=True)
class Brackets:
    """Expressions in brackets: an expression is a digit or (left operator right); expressions of fewer than 5 symbols
    are d, -d, (d) or (-d).

    Attributes:
      operators: number of operators, the first ones of + - *; their tokens follow the digits, then come the two
        brackets.
    """

    operators: int

    @property
    def opening(self) -> int:
        """The token of the opening bracket; the closing one follows."""
        return MODULUS + self.operators

    def draw(self, rng: np.random.Generator, n: int) -> list[int]:
        """An expression of n symbols."""
        opening, closing = self.opening, self.opening + 1
        if n < 5:
            inside = [MINUS] * (n % 2 == 0) + [int(rng.integers(0, MODULUS))]
            return inside if n < 3 else [opening, *inside, closing]
        left = int(rng.integers(1, n - 3))
        first, second = self.draw(rng, left), self.draw(rng, n - 3 - left)
        return [opening, *first, PLUS + int(rng.integers(0, self.operators)), *second, closing]

    def value(self, tokens: Sequence[int]) -> int:
        """The value of an expression modulo 5; each pair of brackets is evaluated when it closes."""
        stack: list[int] = []
        for token in [self.opening, *tokens, self.opening + 1]:
            if token != self.opening + 1:
                stack.append(token)
                continue
            start = len(stack) - 1 - stack[::-1].index(self.opening)
            inside = stack[start + 1 :]
            del stack[start:]
            if len(inside) < 3:
                value = inside[-1] if len(inside) == 1 else -inside[-1]
            else:
                # A negative digit may stand on either side of the operator.
                first, rest = (inside[0], inside[1:]) if inside[0] != MINUS else (-inside[1], inside[2:])
                second = rest[1] if len(rest) == 2 else -rest[2]
                value = {PLUS: first + second, MINUS: first - second, TIMES: first * second}[rest[0]]
            stack.append(value % MODULUS)
        return stack[0]


ALL_OPERATORS, SUMS = Brackets(3), Brackets(2)
UNKNOWN, EQUALS = SUMS.opening + 2, SUMS.opening + 3


def _equation(rng: np.random.Generator, n: int) -> list[int]:
    """An equation of an expression and its value, with one digit hidden: the first at or after a random place."""
    tokens = SUMS.draw(rng, n - 2)
    value, place = SUMS.value(tokens), int(rng.integers(0, n - 2))
    while tokens[place] >= MODULUS:
        place = (place + 1) % len(tokens)
    tokens[place] = UNKNOWN
    return [*tokens, EQUALS, value]


def _unknown(tokens: list[int]) -> list[int]:
    """The digit that makes an equation true."""
    place = tokens.index(UNKNOWN)
    return [x for x in range(MODULUS) if SUMS.value([*tokens[:place], x, *tokens[place + 1 : -2]]) == tokens[-1]]


def _stack(rng: np.random.Generator, n: int) -> list[int]:
    """A stack of bits, its bottom first, and operations: 2 pops the top, 3 and 4 push 0 and 1."""
    height = int(rng.integers(1, n))
    return [*rng.integers(0, 2, height).tolist(), *rng.integers(2, 5, n - height).tolist()]


def _manipulated(tokens: list[int]) -> list[int]:
    """The final stack, its top first."""
    stack: list[int] = []
    for token in tokens:
        if token != 2:
            stack.append(token % 3)
        elif stack:
            stack.pop()
    return [*stack[::-1], STOP]


def _bits(rng: np.random.Generator, n: int) -> list[int]:
    """n bits of a random number of at least 1."""
    bits = [0]
    while not any(bits):
        bits = rng.integers(0, 2, n).tolist()
    return bits


def _numbers(rng: np.random.Generator, n: int) -> list[int]:
    """Two numbers with the separator between them."""
    first = int(rng.integers(1, n - 1))
    return [*_bits(rng, first), STOP, *_bits(rng, n - 1 - first)]


def _written(number: int) -> list[int]:
    """A number's bits, the least significant first."""
    return [int(bit) for bit in f"{number:b}"[::-1]]


def _calculated(operator: Callable[[int, int], int]) -> Solve:
    def solve(tokens: list[int]) -> list[int]:
        middle = tokens.index(STOP)
        first, second = (sum(bit << i for i, bit in enumerate(n)) for n in (tokens[:middle], tokens[middle + 1 :]))
        return [*_written(operator(first, second)), STOP]

    return solve


def _missing(rng: np.random.Generator, n: int) -> list[int]:
    """A string repeated twice, with one symbol hidden (2), and a padding symbol (3) if n is odd."""
    tokens = rng.integers(0, 2, n // 2).tolist() * 2
    tokens[int(rng.integers(0, len(tokens)))] = 2
    return [*tokens, *[3] * (n % 2)]


def _found(tokens: list[int]) -> list[int]:
    """The hidden symbol: that of the other half."""
    half, place = len(tokens) // 2, tokens.index(2)
    return [tokens[place - half if place >= half else place + half]]


def _root(tokens: list[int]) -> list[int]:
    """The integer part of the square root of a number, both as bits from the most significant on."""
    root = math.isqrt(int("".join(map(str, tokens)), 2))
    return [int(bit) for bit in f"{root:b}".zfill(-(-len(tokens) // 2))]


_BITS = _string(2)
PROBLEMS: Mapping[str, Problem] = {
    "even_pairs": Problem("regular", 2, 2, _BITS, lambda s: [int(s[0] != s[-1])]),
    "modular_arithmetic": Problem("regular", MODULUS + 3, MODULUS, _alternating, lambda s: [_sum_of_products(s)]),
    "parity_check": Problem("regular", 2, 2, _BITS, lambda s: [sum(s) % 2]),
    "cycle_navigation": Problem("regular", 3, 5, _string(3), lambda s: [(sum(s) - len(s)) % 5]),
    "modular_arithmetic_brackets": Problem(
        "dcf", MODULUS + 5, MODULUS, ALL_OPERATORS.draw, lambda s: [ALL_OPERATORS.value(s)]
    ),
    "reverse_string": Problem("dcf", 2, 2, _BITS, lambda s: s[::-1], lambda n: n),
    "solve_equation": Problem("dcf", MODULUS + 6, MODULUS, _equation, _unknown, shortest=3),
    "stack_manipulation": Problem("dcf", 5, 3, _stack, _manipulated, lambda n: n + 1, shortest=2),
    "binary_addition": Problem("cs", 3, 3, _numbers, _calculated(lambda a, b: a + b), lambda n: n + 1, shortest=3),
    "binary_multiplication": Problem("cs", 3, 3, _numbers, _calculated(lambda a, b: a * b), lambda n: n, shortest=3),
    "bucket_sort": Problem("cs", 5, 5, _string(5), sorted, lambda n: n),
    "compute_sqrt": Problem("cs", 2, 2, _bits, _root, lambda n: -(-n // 2)),
    "duplicate_string": Problem("cs", 2, 2, _BITS, lambda s: s * 2, lambda n: 2 * n),
    "missing_duplicate_string": Problem("cs", 4, 2, _missing, _found, shortest=2),
    # As in the authors' code, which counts from 0.
    "odds_first": Problem("cs", 2, 2, _BITS, lambda s: [*s[1::2], *s[::2]], lambda n: n),
}


@register("algorithmic")
class Algorithmic(Procedural):
    """A problem of the Chomsky hierarchy: an input, followed by empty tokens at whose positions the model must output
    the answer.

        reverse_string      1 0 0 . . .        binary_addition     1 1 2 0 1 . . . . . .       3 + 2 = 5
                                 [0 0 1]                                    [1 0 1 2]

    Training and validation have inputs of 1 to ``length`` symbols, with uniformly distributed lengths, and test of
    ``test_shortest`` to ``test_length``; short ones are padded, and the model gets a mask. The paper trains on up to 40
    symbols and tests on 41 to 500, its code on 41 to 100. An answer of unknown length ends with 2; the zeros after it
    are part of the authors' loss, but not of ours. Chance is 1 / symbols of the answer.

    Args:
      problem: a key of :data:`PROBLEMS`.
      length: symbols of the longest training inputs.
      test_length: symbols of the longest test inputs.
      test_shortest: symbols of the shortest test inputs; None for ``length`` + 1.
      num_eval: number of examples of validation, and of test.
      seed: seed of all examples.

    Raises:
      ValueError: an unknown problem (similar names are suggested), or lengths out of range.
    """

    paper = (167,)

    def __init__(
        self,
        problem: str = "reverse_string",
        length: int = 40,
        test_length: int = 100,
        test_shortest: int | None = None,
        num_eval: int = 512,
        seed: int = 0,
    ):
        if problem not in PROBLEMS:
            raise ValueError(unknown("problem", problem, PROBLEMS))
        self.problem = PROBLEMS[problem]
        self.shortest = self.problem.shortest
        super().__init__(length, test_length, num_eval, seed)
        if test_length == length:
            raise ValueError(f"test_length must differ from length={length}, which training and validation have")
        first = min(length + 1, test_length) if test_shortest is None else test_shortest
        if not self.shortest <= first <= test_length:
            raise ValueError(f"test_shortest is from {self.shortest} to test_length={test_length}, not {first}")
        self.test_shortest = first
        self.empty = max(self.problem.symbols, self.problem.answers)
        self.padding, self.vocab_size = self.empty + 1, self.empty + 2
        self.chance = 1 / self.problem.answers

    def make(self, rng: np.random.Generator, length: int, training: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        del training
        lengths = (self.test_shortest, length) if length != self.length else (self.shortest, length)
        given = self.problem.draw(rng, int(rng.integers(lengths[0], lengths[1] + 1)))
        answer = self.problem.solve(given)
        width = length + self.problem.size(length)
        tokens, targets = np.full(width, self.padding), np.zeros(width, np.int32)
        tokens[: len(given)] = given
        tokens[len(given) : len(given) + self.problem.size(len(given))] = self.empty
        place = np.arange(width) - len(given)
        targets[len(given) : len(given) + len(answer)] = answer
        return tokens, targets, (place >= 0) & (place < len(answer))
