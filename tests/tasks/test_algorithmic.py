"""The fifteen problems of the Chomsky hierarchy: answers beside the authors' and by other ways, and what a row has."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import tasks
from tasks.algorithmic import MODULUS, PROBLEMS, STOP
from tests.references.algorithmic import PATH

SIGNS = {"modular_arithmetic": "+-*", "modular_arithmetic_brackets": "+-*()", "solve_equation": "+-()x="}


def text(problem: str, tokens: list[int]) -> str:
    return "".join(str(t) if t < MODULUS else SIGNS[problem][t - MODULUS] for t in tokens)


def by_python(problem: str, tokens: list[int]) -> list[int]:
    """The answer, by what Python computes of the text, or by a count."""
    if problem in ("modular_arithmetic", "modular_arithmetic_brackets"):
        return [eval(text(problem, tokens)) % MODULUS]
    if problem == "solve_equation":
        left, right = text(problem, tokens).split("=")
        at = [eval(left, {"x": x}) - int(right) for x in (0, 1)]  # a sum is linear in x
        return [int(Fraction(-at[0], at[1] - at[0]) % MODULUS)]
    if problem in ("binary_addition", "binary_multiplication"):
        numbers = [int(part[::-1], 2) for part in "".join(map(str, tokens)).split("2")]
        value = sum(numbers) if problem == "binary_addition" else numbers[0] * numbers[1]
        return [*map(int, bin(value)[:1:-1]), STOP]
    if problem == "compute_sqrt":
        number = int("".join(map(str, tokens)), 2)
        root = max(x for x in range(2 ** (len(tokens) // 2 + 1)) if x * x <= number)
        return [root >> i & 1 for i in range((len(tokens) + 1) // 2)][::-1]
    if problem == "stack_manipulation":
        stack = "".join(map(str, tokens)).replace("3", "P").replace("4", "Q")
        while any(sign in stack for sign in "2PQ"):
            place = min(stack.find(sign) for sign in "2PQ" if sign in stack)
            pushed = {"2": "", "P": "0", "Q": "1"}[stack[place]]
            stack = stack[: place if pushed else max(place - 1, 0)] + pushed + stack[place + 1 :]
        return [*map(int, stack[::-1]), STOP]
    if problem == "even_pairs":
        return [sum(a != b for a, b in itertools.pairwise(tokens)) % 2]
    if problem == "cycle_navigation":
        return [(tokens.count(2) - tokens.count(0)) % 5]
    if problem == "missing_duplicate_string":
        half = len(tokens) // 2
        return [max({tokens[i], tokens[half + i]} - {2}) for i in range(half) if 2 in (tokens[i], tokens[half + i])]
    order: dict[str, Any] = {
        "parity_check": lambda: [tokens.count(1) % 2],
        "reverse_string": lambda: [tokens[-i] for i in range(1, len(tokens) + 1)],
        "bucket_sort": lambda: [s for s in range(5) for _ in range(tokens.count(s))],
        "duplicate_string": lambda: [*tokens, *tokens],
        "odds_first": lambda: (
            [t for i, t in enumerate(tokens) if i % 2] + [t for i, t in enumerate(tokens) if not i % 2]
        ),
    }
    return list(order[problem]())


def until_stop(problem: str, row: list[int]) -> list[int]:
    return row[: row.index(STOP) + 1] if PROBLEMS[problem].answers == 3 else row


@pytest.mark.parametrize("problem", PROBLEMS)
def test_answers(problem: str) -> None:
    """Beside those of the authors' code, for its inputs, and those of another way, for ours."""
    own, rng = PROBLEMS[problem], np.random.default_rng(0)
    with np.load(PATH) as recorded:
        found = [name for name in recorded if name.startswith(f"{problem}/") and name.endswith("given")]
        assert len(found) >= 6
        for name in found:
            for given, answer in zip(recorded[name], recorded[name.replace("given", "answer")], strict=True):
                assert own.solve(given.tolist()) == until_stop(problem, answer.tolist()), text(problem, given.tolist())
    told = set()
    for _ in range(60):
        n = int(rng.integers(own.shortest, 15))
        given = own.draw(rng, n)
        answer = own.solve(given)
        assert len(given) == n - (problem == "modular_arithmetic" and n % 2 == 0)
        assert answer == by_python(problem, given), given
        assert 0 <= min(given) <= max(given) < own.symbols
        assert 0 <= min(answer) <= max(answer) < own.answers
        assert len(answer) <= own.size(len(given))
        assert own.answers == 3 or len(answer) == own.size(len(given))
        told.add(answer[0])
    assert len(told) > 1


def test_inputs_are_as_often_as_the_authors() -> None:
    """The same lengths of the first number, and digits after the stack, in the mean of many."""
    rng = np.random.default_rng(0)
    middles = [PROBLEMS["binary_addition"].draw(rng, 11).index(STOP) for _ in range(4000)]
    assert sorted(set(middles)) == list(range(1, 10))
    assert np.bincount(middles, minlength=10)[1:].std() < 50  # of 444 each
    heights = [sum(t < 2 for t in PROBLEMS["stack_manipulation"].draw(rng, 9)) for _ in range(2000)]
    assert sorted(set(heights)) == list(range(1, 9))


@pytest.mark.parametrize("problem", ["binary_addition", "duplicate_string", "parity_check"])
def test_a_row(problem: str) -> None:
    """The input, as many empty tokens as the answer may have, and padding; answers at the empty ones."""
    task: Any = tasks.create("algorithmic", problem=problem, length=7, test_length=12)
    for split, lengths in (("train", range(1, 8)), ("validation", range(1, 8)), ("test", range(8, 13))):
        examples, seen = task.examples(split), set()
        for index in range(120):
            example = examples.get(index, None)
            tokens = example["tokens"].tolist()
            given = tokens[: tokens.index(task.empty)]
            size = task.problem.size(len(given))
            assert tokens == given + [task.empty] * size + [task.padding] * (len(tokens) - len(given) - size)
            answer = task.problem.solve(given)
            places = np.flatnonzero(example["answers"])
            assert places.tolist() == list(range(len(given), len(given) + len(answer)))
            assert example["targets"][places].tolist() == answer
            seen.add(len(given))
        assert seen == {n for n in lengths if n >= task.shortest}


def test_the_model_gets_a_mask() -> None:
    task: Any = tasks.create("algorithmic", length=4, test_length=6)
    batch = {name: value[None] for name, value in task.examples("train").get(1, None).items()}
    real = batch["tokens"] != task.padding
    assert real.sum() < real.size
    right = jnp.eye(task.vocab_size)[batch["targets"]]

    def model(tokens: Any, mask: Any) -> Any:
        assert np.array_equal(mask, real)
        return jnp.where(mask[..., None], right, jnp.nan)

    assert task.evaluate(model, {**batch, "weight": jnp.ones(1)})["exact"][0] == 1


def test_what_it_refuses() -> None:
    for options, message in (
        ({"problem": "reverse_sting"}, "did you mean 'reverse_string'"),
        ({"problem": "solve_equation", "length": 2}, "length is at least 3 here"),
        ({"length": 9, "test_length": 9}, "test_length must differ from length=9"),
        ({"test_length": 50, "test_shortest": 51}, "test_shortest is from 1 to test_length=50"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks.create("algorithmic", **options)
