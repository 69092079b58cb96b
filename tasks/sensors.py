"""Continuous sequence-to-sequence prediction: numbers are predicted from sensor readings, at a lower rate (Bhirangi et
al., 2024, arXiv:2402.10211).

    accelerometer   velocity from acceleration with a bias that drifts, and noise
    force           the force on a sensor that saturates and lags
    csv             columns of the user's files

An example is a window of ``length`` readings, with a target at the end of every ``ratio`` of them. The first two
sources are computed: an example is a function of (seed, split, index) alone, with 50 readings per second. As the
authors do, each reading has its change since the previous one appended, and readings and targets are normalized to mean
0 and standard deviation 1; metrics are for normalized targets.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from suggestions import unknown
from tasks.procedural import NUM_TRAIN, SPLITS
from tasks.registry import register
from tasks.task import Batch, Metrics, Model

Window = tuple[np.ndarray, np.ndarray]
"""Readings (length, sensors) and targets at each of them (length, outputs), float64."""
RATE = 50.0
"""Readings per second of computed sources."""
_WARM = 64
"""Readings before a window begins, in which a lagging sensor settles."""
_MEASURED = 64
"""Number of examples from which mean and standard deviation are computed."""


def _waves(rng: np.random.Generator, time: np.ndarray, axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth motion (length, axes), a sum of four waves of 0.1 to 1 Hz, and its time derivative."""
    turns = 2 * np.pi * rng.uniform(0.1, 1.0, (4, axes))
    size, phase = rng.standard_normal((4, axes)) / 2, rng.uniform(0, 2 * np.pi, (4, axes))
    angle = turns * time[:, None, None] + phase
    return (size * np.sin(angle)).sum(1), (size * turns * np.cos(angle)).sum(1)


def accelerometer(rng: np.random.Generator, length: int, axes: int) -> Window:
    """Acceleration with a constant bias, a random walk and noise; the target is the change of velocity since the window
    began.
    """
    time = np.arange(length + 1) / RATE
    velocity, slope = _waves(rng, time, axes)
    walk = np.cumsum(rng.standard_normal((length + 1, axes)), 0) * (0.3 / RATE**0.5)
    read = slope + 0.5 * rng.standard_normal(axes) + walk + 0.3 * rng.standard_normal((length + 1, axes))
    return read[1:], velocity[1:] - velocity[0]


def force(rng: np.random.Generator, length: int, axes: int) -> Window:
    """Readings of a force sensor with saturation, a lag of a tenth of a second and noise; the target is the force."""
    time = np.arange(-_WARM, length) / RATE
    true, _ = _waves(rng, time, axes)
    decay = np.exp(-np.arange(_WARM + 1) / (0.1 * RATE))
    lag = decay / decay.sum()
    bent = np.tanh(2 * true)
    read = np.stack([np.convolve(bent[:, axis], lag, "valid") for axis in range(axes)], 1)
    return read + 0.02 * rng.standard_normal(read.shape), true[_WARM:]


SOURCES: Mapping[str, Callable[[np.random.Generator, int, int], Window]] = {
    "accelerometer": accelerometer,
    "force": force,
}


def _columns(given: str | Sequence[str], what: str) -> tuple[str, ...]:
    names = tuple(given.split("+")) if isinstance(given, str) else tuple(given)
    if not all(names):
        raise ValueError(f"csv needs the names of columns: {what}=NAME+NAME")
    return names


def read_csv(path: Path, columns: Sequence[str]) -> np.ndarray:
    """Columns of a file with a header: (rows, columns) float64.

    Raises:
      ValueError: an unknown column (similar names are suggested), or a cell that is not a number.
    """
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        names = rows.fieldnames or ()
        for column in columns:
            if column not in names:
                raise ValueError(f"{path}: {unknown('column', column, names)}")
        found = []
        for number, row in enumerate(rows, 2):
            try:
                found.append([float(row[column]) for column in columns])
            except (TypeError, ValueError):
                cells = [row[column] for column in columns]
                raise ValueError(f"{path}, line {number}: {cells} are not all numbers") from None
    return np.asarray(found, np.float64).reshape(-1, len(columns))


class SensorExamples:
    """Examples of a split: "x" (length, in_features) and "y" (length / ratio, outputs), float32."""

    def __init__(self, task: SensorSequences, split: str, count: int):
        self._task, self._split, self._count = task, split, count

    def __len__(self) -> int:
        return self._count

    def get(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns one example; there is nothing to augment."""
        del rng
        return self._task.normed(*self._task.window(self._split, index))


@register("sensor_sequences")
class SensorSequences:
    """Prediction of numbers from sensor readings, with several readings per prediction.

    Args:
      source: "accelerometer", "force" or "csv".
      length, test_length: number of readings of a window, a multiple of ``ratio``; with None test windows have
        ``length`` too.
      ratio: number of readings of a chunk, which has a target at its end.
      axes: for computed sources: number of sensors, and of outputs.
      deltas: whether readings have their change since the previous one appended.
      path: for csv: a file, or a folder of files, each a recording with a header and one row per reading.
      inputs, targets: for csv: names of columns, as "ax+ay" or a sequence. The first 8 tenths of each recording are the
        training split, the next tenth is validation, the last is the test.
      num_eval: number of examples of validation, and of test, of a computed source.
      seed: seed of computed examples.

    Raises:
      ValueError: an unknown source (similar names are suggested), lengths that are not multiples of ``ratio``, or files
        that lack the columns or are too short.
    """

    paper = (98,)
    needs: tuple[str, ...] = ()
    monitor = "loss"
    higher_is_better = False
    splits = SPLITS

    def __init__(
        self,
        source: str = "accelerometer",
        length: int = 200,
        test_length: int | None = None,
        ratio: int = 10,
        axes: int = 2,
        deltas: bool = True,
        path: str = "",
        inputs: str | Sequence[str] = "",
        targets: str | Sequence[str] = "",
        num_eval: int = 256,
        seed: int = 0,
    ):
        if source not in (*SOURCES, "csv"):
            raise ValueError(unknown("source", source, [*SOURCES, "csv"]))
        if min(ratio, axes, num_eval) < 1:
            raise ValueError(f"ratio, axes and num_eval are at least 1, not {ratio}, {axes} and {num_eval}")
        self.test_length = length if test_length is None else test_length
        for name, value in (("length", length), ("test_length", self.test_length)):
            if value < ratio or value % ratio:
                raise ValueError(f"{name} must be a multiple of ratio={ratio} readings, not {value}")
        self.source, self.length, self.ratio, self.axes, self.deltas = source, length, ratio, axes, deltas
        self.num_eval, self.seed = num_eval, seed
        self._sizes = (axes, axes)
        self._parts: dict[str, list[Window]] = {}
        self._windows: dict[str, list[tuple[int, int]]] = {}
        if source == "csv":
            self._read(path, _columns(inputs, "inputs"), _columns(targets, "targets"))
        count = min(_MEASURED, len(self.examples("train")))
        windows = [self.window("train", index) for index in np.linspace(0, count - 1, count).astype(int)]
        x, y = (np.concatenate(arrays) for arrays in zip(*windows, strict=True))
        self._mean = x.mean(0), y.mean(0)
        self._deviation = tuple(np.maximum(a.std(0), 1e-5) for a in (x, y))

    def _read(self, path: str, inputs: tuple[str, ...], targets: tuple[str, ...]) -> None:
        files = sorted(Path(path).glob("*.csv")) if path and Path(path).is_dir() else [Path(path)] if path else []
        if not files or not all(file.is_file() for file in files):
            raise ValueError(f"csv needs path=, a file or a folder of .csv files; found none at {path!r}")
        self._sizes = len(inputs), len(targets)
        self._parts = {split: [] for split in SPLITS}
        for file in files:
            rows = read_csv(file, (*inputs, *targets))
            ends = [len(rows) * tenths // 10 // self.ratio * self.ratio for tenths in (0, 8, 9, 10)]
            for split, start, end in zip(SPLITS, ends, ends[1:], strict=False):
                self._parts[split].append((rows[start:end, : len(inputs)], rows[start:end, len(inputs) :]))
        self._windows = {split: self._starts(split) for split in SPLITS}
        for split in SPLITS:
            if not self._windows[split]:
                length = self.length_of(split)
                raise ValueError(f"{split} has no window of {length} readings in {len(files)} files: take shorter ones")

    def length_of(self, split: str) -> int:
        """The number of readings of an example."""
        return self.test_length if split == "test" else self.length

    def _starts(self, split: str) -> list[tuple[int, int]]:
        """The recording of each window and its start: windows begin at every chunk in training, and do not overlap
        otherwise.
        """
        length = self.length_of(split)
        step = self.ratio if split == "train" else length
        parts = enumerate(self._parts[split])
        return [(number, start) for number, (x, _) in parts for start in range(0, len(x) - length + 1, step)]

    def window(self, split: str, index: int) -> Window:
        """Readings, with their changes if ``deltas``, and the targets at the end of each chunk, not normalized."""
        length = self.length_of(split)
        if self.source == "csv":
            number, start = self._windows[split][index]
            x, y = (a[start : start + length] for a in self._parts[split][number])
        else:
            rng = np.random.Generator(np.random.Philox(key=[self.seed, SPLITS.index(split)], counter=[0, 0, 0, index]))
            x, y = SOURCES[self.source](rng, length, self.axes)
        if self.deltas:
            x = np.concatenate([x, np.diff(x, axis=0, prepend=x[:1])], 1)
        return x, y[self.ratio - 1 :: self.ratio]

    def normed(self, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        """A window as an example: both arrays normalized, float32."""
        made = [(a - mean) / scale for a, mean, scale in zip((x, y), self._mean, self._deviation, strict=True)]
        return {"x": made[0].astype(np.float32), "y": made[1].astype(np.float32)}

    def model_options(self) -> dict[str, Any]:
        """Returns in_features, outputs and ratio."""
        inputs, outputs = self._sizes
        return {"in_features": inputs * (1 + self.deltas), "outputs": outputs, "ratio": self.ratio}

    def describe(self, split: str) -> str:
        """Returns the number and length of a split's windows."""
        return f"{len(self.examples(split)):,} windows of {self.length_of(split)} readings of {self.source}"

    def examples(self, split: str) -> SensorExamples:
        """Returns the examples of a split.

        Raises:
          ValueError: there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(unknown("split", split, SPLITS))
        if self.source == "csv":
            return SensorExamples(self, split, len(self._windows[split]))
        return SensorExamples(self, split, NUM_TRAIN if split == "train" else self.num_eval)

    def loss(self, model: Model, batch: Batch, rngs: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the mean squared error."""
        del rngs
        metrics = measure(model, batch, jnp.ones(batch["x"].shape[0], jnp.float32))
        total, count = metrics["loss"]
        return total / count, metrics

    def evaluate(self, model: Model, batch: Batch) -> Metrics:
        """Returns "loss", the mean squared error, and "unexplained", its ratio to the targets' mean square."""
        return measure(model, batch, batch["weight"])


def measure(model: Model, batch: Batch, weight: jax.Array) -> Metrics:
    """Metrics of a model's predictions; ``weight`` is (batch,).

    Raises:
      ValueError: predictions and targets have different shapes.
    """
    found, wanted = model(batch["x"]).astype(jnp.float32), batch["y"]
    if found.shape != wanted.shape:
        raise ValueError(
            f"the model predicts {found.shape}, but targets are {wanted.shape}, (batch, chunks, outputs): take a model "
            f"of series, such as hiss_nano, with the task's ratio"
        )
    each = weight[:, None, None]
    error, square = (jnp.sum(each * a**2) for a in (found - wanted, wanted))
    return {"loss": (error, jnp.sum(weight) * wanted[0].size), "unexplained": (error, square)}
