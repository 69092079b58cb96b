"""Readings of sensors and what is wanted of them: physics of computed sources, files, figures, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tasks
from tasks.sensors import RATE, accelerometer, force


def examples(task: Any, split: str, count: int) -> dict[str, np.ndarray]:
    rows = [task.examples(split).get(index, None) for index in range(count)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_velocity_is_the_sum_of_acceleration_but_for_drift() -> None:
    """The sum of the readings, less bias and noise, is the velocity; with them it goes astray as time passes."""
    errors = []
    for seed in range(40):
        read, velocity = accelerometer(np.random.default_rng(seed), 500, 1)
        errors.append(np.cumsum(read, 0)[:, 0] / RATE - velocity[:, 0])
    early, late = (np.abs(np.asarray(errors)[:, at]).mean() for at in (25, 499))
    assert early < 0.5
    assert late > 5 * early
    # A quarter of a second of it is the slope of the velocity, up to the bias of this window.
    change = velocity[12::12] - velocity[:-12:12]
    sums = np.add.reduceat(read, np.arange(1, 488, 12))[: len(change)] / RATE
    assert np.corrcoef(change[: len(sums), 0], sums[: len(change), 0])[0, 1] > 0.9


def test_force_saturates_and_lags() -> None:
    read, true = force(np.random.default_rng(0), 2000, 1)
    lags = [np.corrcoef(read[late:, 0], np.tanh(2 * true[: len(true) - late, 0]))[0, 1] for late in range(12)]
    assert 2 <= int(np.argmax(lags)) <= 8
    assert np.abs(read).max() < 1.1


@pytest.mark.parametrize("source", ["accelerometer", "force"])
def test_computed_examples(source: str) -> None:
    """The same whenever they are asked for, in other splits others, of mean 0 and deviation 1; changes are beside."""
    task: Any = tasks.create("sensor_sequences", source=source, length=60, test_length=80, ratio=20, axes=3)
    batch, again = examples(task, "train", 64), examples(task, "train", 2)
    assert all(np.array_equal(batch[name][:2], again[name]) for name in batch)
    assert batch["x"].shape == (64, 60, 6)
    assert batch["y"].shape == (64, 3, 3)
    assert examples(task, "test", 1)["y"].shape == (1, 4, 3)
    assert not np.array_equal(examples(task, "validation", 1)["x"], batch["x"][:1])
    for array in batch.values():
        np.testing.assert_allclose(array.mean((0, 1)), 0, atol=1e-5)
        np.testing.assert_allclose(array.std((0, 1)), 1, atol=1e-5)
    x, _ = task.window("train", 0)
    np.testing.assert_allclose(x[1:, 3:], np.diff(x[:, :3], axis=0))
    assert not x[0, 3:].any()
    assert task.model_options() == {"in_features": 6, "outputs": 3, "ratio": 20}


def test_files(tmp_path: Path) -> None:
    """Columns by name; a split has its own part of each recording, in whole chunks."""
    rng = np.random.default_rng(0)
    for number in range(2):
        rows = np.column_stack([np.arange(200) + 1000 * number, rng.standard_normal((200, 2))])
        np.savetxt(tmp_path / f"{number}.csv", rows, delimiter=",", header="time,force,unused", comments="")
    options: dict[str, Any] = {"source": "csv", "path": str(tmp_path), "inputs": "force", "targets": ("time",)}
    task: Any = tasks.create("sensor_sequences", **options, length=20, ratio=5, deltas=False)
    # Windows of 20 in 160 readings from each chunk on, and in 20 readings once.
    assert [len(task.examples(split)) for split in tasks.sensors.SPLITS] == [2 * 29, 2, 2]
    assert task.window("train", 1)[1][:, 0].tolist() == [9, 14, 19, 24]
    assert task.window("validation", 1)[1][:, 0].tolist() == [1164, 1169, 1174, 1179]
    assert task.window("test", 0)[1][:, 0].tolist() == [184, 189, 194, 199]
    assert task.model_options() == {"in_features": 1, "outputs": 1, "ratio": 5}
    for changed, message in (
        ({"inputs": "forces"}, "unknown column 'forces': did you mean 'force'"),
        ({"targets": ""}, "targets=NAME"),
        ({"path": str(tmp_path / "none")}, "a file or a folder of .csv files; found none at"),
        ({"length": 40}, "validation has no window of 40 readings in 2 files"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks.create("sensor_sequences", **{**options, "length": 20, "ratio": 5, **changed})
    (tmp_path / "2.csv").write_text("time,force\n1,2\n3,no\n")
    with pytest.raises(ValueError, match=r"2.csv, line 3: .*'no'.* are not all numbers"):
        tasks.create("sensor_sequences", **options, length=20, ratio=5)


def test_figures() -> None:
    """Rows that only fill the batch count nothing."""
    task: Any = tasks.create("sensor_sequences", length=30, axes=1)
    batch: Any = examples(task, "validation", 4)
    found = np.random.default_rng(0).standard_normal(batch["y"].shape).astype(np.float32)
    weight = np.asarray([1, 1, 0, 1], np.float32)
    metrics = task.evaluate(lambda x: jnp.asarray(found), {**batch, "weight": weight})
    error, target = ((a[weight > 0] ** 2).astype(np.float64) for a in (found - batch["y"], batch["y"]))
    assert float(metrics["loss"][0] / metrics["loss"][1]) == pytest.approx(error.mean(), rel=1e-5)
    assert float(metrics["unexplained"][0] / metrics["unexplained"][1]) == pytest.approx(
        error.sum() / target.sum(), rel=1e-5
    )
    loss, _ = task.loss(lambda x: jnp.asarray(found), batch, jax.random.key(0))
    assert float(loss) == pytest.approx(((found - batch["y"]) ** 2).mean(), rel=1e-5)
    with pytest.raises(ValueError, match=r"predicts \(4, 30, 2\), but targets are \(4, 3, 1\), .* such as hiss_nano"):
        task.loss(lambda x: x, batch, jax.random.key(0))


def test_refusals() -> None:
    for options, message in (
        ({"source": "forces"}, "unknown source 'forces': did you mean 'force'"),
        ({"length": 25}, "length must be a multiple of ratio=10 readings, not 25"),
        ({"test_length": 5}, "test_length must be a multiple of ratio=10 readings, not 5"),
        ({"axes": 0}, "at least 1"),
        ({"source": "csv"}, "inputs=NAME"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks.create("sensor_sequences", **options)
    with pytest.raises(ValueError, match="unknown split 'tests': did you mean 'test'"):
        tasks.create("sensor_sequences").examples("tests")
