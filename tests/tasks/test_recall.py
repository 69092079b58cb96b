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
}
ALL = sorted(
    name
    for name in tasks.list_tasks()
    if isinstance(tasks.lookup(name), type) and issubclass(tasks.lookup(name), Procedural)
)


def task_of(name: str, **options: object) -> Procedural:
    return tasks.create(name, **{**SMALL[name], **options})


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


@pytest.mark.parametrize("name", ALL)
def test_metrics(name: str) -> None:
    task = task_of(name)
    rows = [task.examples("validation").get(i, None) for i in range(4)]
    batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]} | {"weight": np.float32([1, 1, 1, 0])}
    evaluate = jax.jit(lambda logits: task.evaluate(lambda tokens: logits, batch))
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
    alike = jax.jit(lambda key: task.loss(lambda tokens: jnp.zeros((*tokens.shape, task.vocab_size)), batch, key))
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
