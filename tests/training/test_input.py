"""The global batch at a step is a pure function of (seed, step)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.toy import ToyExamples
from training import input as feed

SIZE, BATCH = 20, 8


def batches(steps: range, **options):
    return dict(feed.train_batches(ToyExamples(SIZE, 1), steps, BATCH, **{"seed": 3, **options}))


def same(a, b) -> bool:
    return set(a) == set(b) and all(
        np.array_equal(a[s][n].reshape(BATCH, -1), b[s][n].reshape(BATCH, -1)) for s in a for n in ("input", "label")
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_workers_and_accumulation_change_nothing(workers, accumulate):
    assert same(batches(range(9)), batches(range(9), workers=workers, accumulate=accumulate))


def test_a_later_start_gives_the_same_batches():
    whole = batches(range(9), workers=2)
    assert same({s: whole[s] for s in range(4, 9)}, batches(range(4, 9), workers=1))


def test_the_seed_changes_order_and_augmentation():
    assert not same(batches(range(2)), batches(range(2), seed=4))


def test_each_epoch_has_every_example_once_in_another_order():
    epochs = [[feed.example_at(e * SIZE + k, SIZE, seed=3) for k in range(SIZE)] for e in range(3)]
    assert all([e for e, _ in epoch] == [number] * SIZE for number, epoch in enumerate(epochs))
    assert all(sorted(i for _, i in epoch) == list(range(SIZE)) for epoch in epochs)
    assert len({tuple(i for _, i in epoch) for epoch in epochs}) == 3


def test_augmentation_depends_on_seed_epoch_and_example_alone():
    draws = {
        key: feed.augmentation(*key).random()
        for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**33, 0, 5), (-1, 2, 3)]
    }
    assert len(set(draws.values())) == len(draws)
    assert all(feed.augmentation(*key).random() == value for key, value in draws.items())


def test_processes_share_each_microbatch():
    examples = ToyExamples(SIZE, 1)
    whole = feed.train_batch(examples, 5, BATCH, seed=3, accumulate=2)
    parts = [feed.train_batch(examples, 5, BATCH, seed=3, accumulate=2, process=p, processes=2) for p in range(2)]
    for name in whole:
        np.testing.assert_array_equal(whole[name], np.concatenate([part[name] for part in parts], axis=1))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_the_examples_surfaces_with_its_message(workers):
    broken = ToyExamples(SIZE, 1, broken=7)
    with pytest.raises(ValueError, match="example 7 is broken"):
        list(feed.train_batches(broken, range(3), BATCH, seed=3, workers=workers))


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="empty"):
        feed.train_batches(ToyExamples(0, 1), range(3), BATCH, seed=3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch", [1, 7, 20, 64])
def test_evaluation_covers_the_split_exactly_and_in_order(batch, workers):
    examples = ToyExamples(SIZE, 1)
    got = list(feed.evaluation_batches(examples, batch, workers=workers))
    assert all(len(b["weight"]) == batch for b in got)
    real = np.concatenate([b["weight"] for b in got]) == 1
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in got])[real], examples.labels)
    np.testing.assert_array_equal(np.concatenate([b["input"] for b in got])[real], examples.inputs)


def test_work_ahead_is_bounded_and_stops_with_the_reader():
    computed = []
    reader = feed.ahead(lambda n: computed.append(n) or {}, range(1000), workers=2)
    next(reader)
    reader.close()
    assert len(computed) <= 6
