"""The procedural tasks: their layouts, answers found by a plain second reading, determinism, chance, metrics."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tasks
from tasks.procedural import Procedural
from tasks.state_tracking import permutations

SMALL = {
    "selective_copying": {"length": 40, "test_length": 60, "memorize": 5},
    "induction_heads": {"length": 24, "test_length": 48},
    "copying": {"length": 9, "test_length": 14},
    "multi_query_recall": {"length": 32, "test_length": 48, "pairs": 4, "vocab_size": 64},
    "passkey": {"length": 120, "test_length": 200},
    "parity": {"length": 12, "test_length": 20},
    "permutation_tracking": {"length": 10, "test_length": 16, "group": "S3"},
    "algorithmic": {"length": 6, "test_length": 11},
    "addition": {"length": 5, "test_length": 8, "random_space": 0.2},
    "dynamic_programming": {"length": 6, "test_length": 9, "values": 16},
    "bigram_backcopy": {"length": 30, "test_length": 50, "symbols": 8, "triggers": 2},
    "position_identification": {"length": 9, "test_length": 14, "vocab_size": 40},
}
ALL = sorted(
    name
    for name in tasks.list_tasks()
    if isinstance(tasks.lookup(name), type) and issubclass(tasks.lookup(name), Procedural)
)


def task_of(name: str, **options: object) -> Procedural:
    return tasks.create(name, **{**SMALL[name], **options})


def added(seen: list[int]) -> int:
    """What follows "hint digit ... + hint digit ... = ..." in the sum, by Python's own addition."""
    equals = seen.index(11)
    numbers, hints = [], []
    question = [token for token in seen[:equals] if token != 13]
    for part in (question[: question.index(10)], question[question.index(10) + 1 :]):
        numbers.append(int("".join(map(str, part[1::2]))[::-1]))
        hints.append(part[::2])
    assert hints[0] == hints[1] == list(range(hints[0][0], hints[0][0] + len(hints[0])))
    digits = str(sum(numbers))[::-1]
    answer = [token for place, digit in enumerate(digits) for token in (hints[0][0] + place, int(digit))]
    assert [*answer, 12][: len(seen) - equals - 1] == seen[equals + 1 :]
    return [*answer, 12][len(seen) - equals - 1]


def longest_increasing(seen: list[int]) -> int:
    """The entry that follows, by trying all subsequences that end there."""
    mark = max(seen)
    numbers, entries = seen[: seen.index(mark)], seen[seen.index(mark) + 1 :]
    if mark in entries:
        return max(entries[:-1])
    last = len(entries)
    chosen = (
        length
        for length in range(last + 1)
        for before in itertools.combinations(numbers[:last], length)
        if all(a < b for a, b in itertools.pairwise((*before, numbers[last])))
    )
    return 1 + max(chosen)


def solve(name: str, tokens: list[int], answer: int) -> int:
    """The right answer at a position, from the tokens up to it alone, by another way than the task's."""
    seen = tokens[: answer + 1]
    if name == "selective_copying":
        marker = max(seen)
        return [t for t in seen if t not in (0, marker)][seen.count(marker) - 1]
    if name == "induction_heads":
        return seen[seen.index(seen[-1]) + 1]
    if name == "copying":
        middle = seen.index(27)
        return seen[1 + len(seen) - middle - 1]
    if name == "multi_query_recall":
        return seen[seen.index(seen[-1]) + 1]
    if name == "passkey":
        text = bytes(seen).decode()
        key = text.split("The pass key is ")[1][:5]
        return ord(key[len(text.split("It is ")[-1])])
    if name == "parity":
        return sum(seen) % 2
    if name == "addition":
        return added(seen)
    if name == "algorithmic":
        return seen[2 * seen.index(2) - answer - 1]
    if name == "dynamic_programming":
        return longest_increasing(seen)
    if name == "bigram_backcopy":
        return seen[-2]
    if name == "position_identification":
        return len(seen)
    shuffled = (0, 1, 2)
    elements = list(itertools.permutations(range(3)))
    for token in seen:
        shuffled = tuple(elements[token][i] for i in shuffled)
    return elements.index(shuffled)


def test_every_procedural_task_is_here() -> None:
    assert sorted(SMALL) == ALL


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("name", ALL)
def test_answers_follow_from_what_was_seen(name: str, split: str) -> None:
    examples = task_of(name).examples(split)
    told = set()
    for index in range(30):
        example = examples.get(index, None)
        tokens, targets = example["tokens"].tolist(), example["targets"].tolist()
        places = np.flatnonzero(example["answers"])
        assert len(places)
        for place in places.tolist():
            assert solve(name, tokens, place) == targets[place]
            told.add(targets[place])
        assert 0 <= min(tokens) <= max(tokens) < task_of(name).vocab_size
    assert len(told) > 1


def test_of_a_key_stored_twice_the_last_value_is_asked_for() -> None:
    task = tasks.create("multi_query_recall", length=24, test_length=24, pairs=4, overwritten=2, vocab_size=64)
    examples, changed = task.examples("train"), 0
    for index in range(20):
        example = examples.get(index, None)
        tokens, asked = example["tokens"].tolist(), np.flatnonzero(example["answers"]).tolist()
        stored = list(zip(tokens[:12:2], tokens[1:12:2], strict=True))
        last = dict(stored)
        assert len(last) == len(asked) == 4
        assert len({value for _, value in stored}) == 6
        assert {tokens[place]: int(example["targets"][place]) for place in asked} == last
        assert min(asked) >= 12
        changed += dict(stored[::-1]) != last
    assert changed == 20
    assert task.chance == 1 / 6


@pytest.mark.parametrize("name", ALL)
def test_an_example_is_a_function_of_its_index(name: str) -> None:
    first, second = task_of(name).examples("train"), task_of(name).examples("train")
    rng = np.random.default_rng(3)
    some = [second.get(i, rng) for i in (7, 1_000_000, 0)]
    for example, index in zip(some, (7, 1_000_000, 0)):
        for key, value in first.get(index, None).items():
            np.testing.assert_array_equal(value, example[key])
    assert any((some[0]["tokens"] != some[1]["tokens"]).tolist())
    other = task_of(name, seed=1).examples("train").get(7, None)
    assert (other["tokens"] != some[0]["tokens"]).any()
    validation = task_of(name).examples("validation").get(7, None)
    assert (validation["tokens"] != some[0]["tokens"]).any()


@pytest.mark.parametrize("name", ALL)
def test_train_and_test_lengths(name: str) -> None:
    task = task_of(name)
    train, validation, test = (task.examples(split).get(0, None)["tokens"].shape[0] for split in task.splits)
    assert train == validation < test
    assert len(task.examples("test")) == task.num_eval


@pytest.mark.parametrize("name", ALL)
def test_chance_is_what_guessing_gives(name: str) -> None:
    """A guess drawn from all answers that are possible, knowing nothing else."""
    task = task_of(name)
    rng = np.random.default_rng(0)
    right = total = 0
    for index in range(400):
        example = task.examples("train").get(index, None)
        tokens, targets = example["tokens"], example["targets"]
        for place in np.flatnonzero(example["answers"]):
            possible = {
                "selective_copying": lambda: np.arange(1, task.vocab_size - 1),
                "induction_heads": lambda: np.arange(task.vocab_size - 1),
                "copying": lambda: np.arange(26),
                "multi_query_recall": lambda tokens=tokens: tokens[1:8:2],
                "passkey": lambda: np.arange(48, 58),
                "dynamic_programming": lambda: np.arange(16),
                "bigram_backcopy": lambda: np.arange(8),
                "algorithmic": lambda: np.arange(2),
                "position_identification": lambda: np.arange(1, 10),
            }.get(name, lambda: np.arange(task.vocab_size))()
            right += rng.choice(possible) == targets[place]
            total += 1
    deviation = (task.chance * (1 - task.chance) / total) ** 0.5
    assert abs(right / total - task.chance) < 4 * deviation


def test_selective_copying_has_the_papers_sizes() -> None:
    example = tasks.create("selective_copying").examples("train").get(0, None)
    assert example["tokens"].shape == (4096 + 16,)
    assert example["answers"].sum() == 16
    assert set(np.unique(example["tokens"])) <= set(range(16))


def test_induction_heads_of_many_lengths() -> None:
    task = tasks.create("induction_heads", length=64, test_length=64, shortest_length=4)
    ends = []
    for index in range(300):
        tokens, targets, answers = (
            task.examples("train").get(index, None)[name] for name in ("tokens", "targets", "answers")
        )
        first, end = np.flatnonzero(tokens == 15)
        assert np.flatnonzero(answers).tolist() == [end]
        assert targets[end] == tokens[first + 1]
        ends.append(int(end))
    assert (min(ends), max(ends)) == (3, 63)
    assert 0.4 < np.mean(np.asarray(ends) < 15) < 0.6  # half of the lengths are below the geometric mean, 16
    assert all(task.examples("validation").get(index, None)["answers"][63] == 1 for index in range(20))
    assert all(
        tasks.create("induction_heads", length=64).examples("train").get(index, None)["answers"][63] == 1
        for index in range(20)
    )


@pytest.mark.parametrize(("group", "order"), [((3, False), 6), ((4, True), 12), ((5, True), 60), ((5, False), 120)])
def test_groups(group: tuple[int, bool], order: int) -> None:
    table = permutations(*group)
    assert table.shape == (order, order)
    everything = np.arange(order)
    for line in (*table, *table.T):
        np.testing.assert_array_equal(np.sort(line), everything)
    np.testing.assert_array_equal(table[0], everything)
    a, b, c = np.random.default_rng(0).integers(0, order, (3, 500))
    np.testing.assert_array_equal(table[table[a, b], c], table[a, table[b, c]])
    assert (table != table.T).any()


def test_formats_of_addition() -> None:
    plain = tasks.create("addition", length=3, test_length=3, reverse=False, index_hints=False, zero_padding=True)
    for index in range(20):
        example = plain.examples("validation").get(index, None)
        text = "".join("0123456789+=. "[token] for token in example["tokens"])
        question, _, answer = text.partition("=")
        a, b = question.split("+")
        written = "".join("0123456789+=. "[token] for token in example["targets"][len(question) :])
        assert (len(a), len(b)) == (3, 3)
        assert written == f"{int(a) + int(b):04d}."
        assert answer == written[:-1]
    spaced = tasks.create("addition", length=3, test_length=3, random_space=0.5).examples("train")
    assert sum((spaced.get(i, None)["tokens"] == 13).sum() for i in range(20)) > 50
    with pytest.raises(ValueError, match="there are 102 hints"):
        tasks.create("addition", length=3, test_length=102)


def test_even_tokens() -> None:
    task = tasks.create("position_identification", length=7, test_length=8, problem="even_tokens", vocab_size=40)
    for split, half, rest in (("train", 3, 4), ("test", 4, 4)):
        example = task.examples(split).get(3, None)
        tokens, targets = example["tokens"].tolist(), example["targets"].tolist()
        assert targets == [tokens[2 * place + 1] for place in range(half)] + [38] * rest
        assert max(tokens) < 20
    assert task.chance == pytest.approx((4 + 3 / 20) / 7)
    with pytest.raises(ValueError, match="take at least 51"):
        tasks.create("position_identification", length=50, vocab_size=50)


def test_other_problems_of_dynamic_programming() -> None:
    options = {"length": 5, "test_length": 6}
    example = tasks.create("dynamic_programming", problem="edit_distance", **options).examples("train").get(1, None)
    whole = [*example["tokens"], example["targets"][-1]]
    a, b, table, answer = "".join(map(chr, whole)).split(chr(64))

    def distance(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))

    assert [ord(entry) for entry in table] == [distance(a[:i], b[:j]) for i in range(1, 6) for j in range(1, 6)]
    assert (ord(answer), example["answers"].sum()) == (distance(a, b), 26)
    for steps in (True, False):
        task = tasks.create("dynamic_programming", problem="arithmetic", steps=steps, **options)
        for index in range(20):
            example = task.examples("train").get(index, None)
            whole = "".join("0123456=+-*()"[token] for token in (*example["tokens"], example["targets"][-1]))
            parts = whole.split("=")
            assert len(parts) == (5 if steps else 2)
            assert {eval(part) % 7 for part in parts} == {int(parts[-1])}
            assert [len(part) for part in parts] == ([15, 11, 7, 3, 1] if steps else [15, 1])
            assert example["answers"].sum() == len("=".join(parts[1:]))
    near = tasks.create("dynamic_programming", window=2, **options).examples("train")
    numbers, entries = (near.get(3, None)["tokens"][part].tolist() for part in (slice(5), slice(6, 11)))
    runs = itertools.accumulate(
        itertools.pairwise(numbers), lambda run, pair: run + 1 if pair[0] < pair[1] else 1, initial=1
    )
    assert entries == list(runs)
    with pytest.raises(ValueError, match="unknown problem 'knapsack'"):
        tasks.create("dynamic_programming", problem="knapsack")
    with pytest.raises(ValueError, match="has entries up to it: values=8 must be more"):
        tasks.create("dynamic_programming", length=8, values=8)


def test_triggers_are_frequent_and_all_tokens_are_trained_on() -> None:
    task = tasks.create("bigram_backcopy")
    seen = np.concatenate([task.examples("train").get(i, None)["tokens"] for i in range(20)])
    share = np.isin(seen, task.triggers).mean()
    assert 3 / 64 < share < 0.5
    batch = {key: value[None] for key, value in task.examples("train").get(0, None).items()}
    logits = np.zeros((1, 257, 65), np.float32)
    logits[..., :64] = np.log(task.bigrams[np.minimum(batch["tokens"], 63)])
    loss, metrics = task.loss(lambda tokens: jnp.asarray(logits), batch, jax.random.key(0))
    expected = jax.nn.logsumexp(logits, -1) - np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    assert float(loss) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert metrics["accuracy"][1] == batch["answers"].sum()


@pytest.mark.parametrize("name", ALL)
def test_metrics(name: str) -> None:
    task = task_of(name)
    rows = [task.examples("validation").get(i, None) for i in range(4)]
    batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]} | {"weight": np.float32([1, 1, 1, 0])}
    evaluate = jax.jit(lambda logits: task.evaluate(lambda tokens, mask=None: logits, batch))
    perfect = 50 * (batch["targets"][..., None] == np.arange(task.vocab_size)).astype(np.float32)
    answers = float(sum(row["answers"].sum() for row in rows[:3]))
    figures = evaluate(perfect)
    assert figures["accuracy"] == (answers, answers)
    assert figures["exact"] == (3, 3)
    assert float(figures["loss"][0]) < 1e-3
    # one wrong answer in the first row, and any in the row of weight 0
    place = int(np.flatnonzero(rows[0]["answers"])[0])
    wrong = perfect.copy()
    wrong[0, place], wrong[3] = np.roll(perfect[0, place], 1), 0
    figures = evaluate(wrong)
    assert figures["accuracy"] == (answers - 1, answers)
    assert figures["exact"] == (2, 3)
    assert float(figures["loss"][0]) == pytest.approx(50, rel=1e-3)
    alike = jax.jit(
        lambda key: task.loss(lambda tokens, mask=None: jnp.zeros((*tokens.shape, task.vocab_size)), batch, key)
    )
    loss, pairs = alike(jax.random.key(0))
    assert float(loss) == pytest.approx(np.log(task.vocab_size), rel=1e-5)
    assert float(pairs["loss"][0] / pairs["loss"][1]) == pytest.approx(float(loss), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("selective_copying", {"length": 4, "memorize": 5}, "length is at least 5"),
        ("selective_copying", {"memorizes": 5}, "did you mean 'memorize'"),
        ("induction_heads", {"length": 2}, "length is at least 3"),
        ("induction_heads", {"length": 8, "shortest_length": 9}, "shortest_length is from 3 to length = 8, not 9"),
        ("multi_query_recall", {"vocab_size": 7}, "even vocab_size"),
        ("multi_query_recall", {"length": 8, "pairs": 4}, "length is at least 16"),
        ("multi_query_recall", {"pairs": 4, "overwritten": 5}, "overwritten is from 0 to pairs=4, not 5"),
        ("multi_query_recall", {"length": 16, "pairs": 4, "overwritten": 1}, "length is at least 18"),
        ("permutation_tracking", {"group": "S9"}, "unknown group"),
        ("passkey", {"length": 20}, "length is at least"),
        ("parity", {"num_eval": 0}, "num_eval"),
    ],
)
def test_refusals(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.create(name, **options)


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="unknown split 'tset': did you mean 'test'"):
        tasks.create("parity").examples("tset")
