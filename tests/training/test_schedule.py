"""Durations and learning rates."""

from __future__ import annotations

import numpy as np
import pytest

from training import schedule
from training.duration import Clock

CLOCK = Clock(batch_size=8, epoch=100)


@pytest.mark.parametrize(
    ("text", "examples", "steps"),
    [
        ("2 epochs", 200, 25),
        ("1 epoch", 100, 13),
        ("0.5 epochs", 50, 7),
        ("500 steps", 4000, 500),
        ("10000 examples", 10000, 1250),
        ("1e3 steps", 8000, 1000),
        ("", 0, 0),
        ("0", 0, 0),
    ],
)
def test_durations(text, examples, steps):
    assert CLOCK.examples(text, "f") == examples
    assert CLOCK.steps(text, "f") == steps


@pytest.mark.parametrize("text", ["20", "epochs", "3 epochz", "-1 epochs", "1 epoch 2"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match=r"train_for=.* is not a duration"):
        CLOCK.examples(text, "train_for")


def test_events_fall_after_each_multiple():
    assert [s for s in range(40) if CLOCK.due(s, 100)] == [13, 25, 38]
    assert [s for s in range(5) if CLOCK.due(s, 16)] == [2, 4]
    assert not any(CLOCK.due(s, 0) for s in range(100))


@pytest.mark.parametrize(
    ("name", "middle", "end"),
    [
        ("cosine", 0.5 * (1 + 0.1), 0.1),
        ("linear", 0.5 * (1 + 0.1), 0.1),
        ("constant", 1.0, 1.0),
        ("rsqrt", (10 / 60) ** 0.5, (10 / 110) ** 0.5),
    ],
)
def test_shapes(name, middle, end):
    rate = schedule.create(name, peak=2.0, total=110, warmup=10, final=0.1)
    np.testing.assert_allclose([rate(s) for s in range(10)], 0.2 * np.arange(1, 11), rtol=1e-6)
    np.testing.assert_allclose([rate(10), rate(60), rate(110)], [2.0, 2 * middle, 2 * end], rtol=1e-6)


def test_no_warmup_starts_at_the_peak():
    assert float(schedule.create("cosine", 1.0, 10)(0)) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cosin"}, "did you mean 'cosine'"),
        ({"warmup": 20}, "longer than the run"),
        ({"peak": -1.0}, "negative"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        schedule.create(**{"name": "cosine", "peak": 1.0, "total": 10, **options})
