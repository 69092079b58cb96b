"""Evaluation: the figures of one set of weights on exactly one split."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from layers.state import assign, flatten
from tasks import DerivesFigures, Scores, Streams, Task
from training import metrics, sharding, streaming
from training import optimizer as optimizers
from training.checkpoint import Checkpoints
from training.input import evaluation_batches
from training.step import Skeleton, initial_weights, make_evaluation, weights

IN_FLIGHT = 2
"""Batches dispatched ahead of the device: enough to keep it busy, few enough to take little memory."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
      figures: value by metric.
      examples: number of examples.
      rows: for a task that ``KeepsRows``, its outputs by name for each example, in order.
    """

    figures: dict[str, float]
    examples: int
    rows: dict[str, np.ndarray]


def held_out(task: Task) -> str:
    """The split on which the final figures are computed."""
    return "test" if "test" in task.splits else "validation"


class Evaluator:
    """Evaluates weights on a whole split; the batch size and the number of devices do not change the result."""

    def __init__(self, skeleton: Skeleton, task: Task, mesh: Mesh, batch_size: int, workers: int = 0) -> None:
        self._task, self._mesh, self._workers, self._skeleton = task, mesh, workers, skeleton
        devices = sharding.row_parts(mesh)
        self._batch_size = math.ceil(batch_size / devices) * devices
        out = sharding.of_state(mesh), sharding.of_rows(mesh)
        self._evaluate = jax.jit(make_evaluation(skeleton, task), out_shardings=out, donate_argnums=2)

    def __call__(self, arrays: dict[str, jax.Array], split: str) -> Evaluation:
        """Evaluates the weights ``arrays`` (by dotted name) on ``split``.

        Raises:
          ValueError: the split is empty.
        """
        examples = self._task.examples(split)
        if not len(examples):
            raise ValueError(f"the split {split!r} is empty")
        reports: list[Any] = []
        carry: Any = None
        if isinstance(examples, Streams):
            carry = streaming.empty(lambda: self._skeleton.build(arrays, jax.random.key(0)), self._batch_size)
            carry = sharding.place(carry, sharding.of_rows(self._mesh))
        for batch in evaluation_batches(examples, self._batch_size, workers=self._workers):
            placed = sharding.place_batch(self._mesh, batch)
            report, carry = self._evaluate(arrays, placed, carry)
            reports.append(report)
            jax.block_until_ready(reports[-IN_FLIGHT:][0])
        pairs, counted, rows = zip(*jax.device_get(reports))
        figures = metrics.figures(pairs)
        if isinstance(self._task, DerivesFigures):
            figures |= self._task.derived(figures)
        real = np.concatenate(counted) > 0
        kept = {name: np.concatenate([part[name] for part in rows])[real] for name in rows[0]}
        if isinstance(self._task, Scores):
            figures |= self._task.scores(kept)
        return Evaluation(figures, int(real.sum()), kept)


def find_data(config: ConfigDict, data: str | None) -> None:
    """Replaces the path of the config's data set by ``data``, if it is given.

    Raises:
      ValueError: the data set has no path, or the path no longer exists.
    """
    dataset = config.task.get("dataset")
    path = dataset.get("path") if isinstance(dataset, ConfigDict) else None
    if data is not None and path is None:
        raise ValueError(f"--data={data}: the data set of this config is not a folder or a file")
    if data is not None:
        dataset.path = data
    elif path is not None and not Path(path).expanduser().exists():
        raise ValueError(f"the data are no longer at {path}: --data=DIR says where they are")


def load(config: ConfigDict, model: nnx.Module, workdir: Path, which: str = "last") -> int:
    """Loads the weights of a run's checkpoint into ``model`` (the averaged ones where the run keeps an average);
    returns their step.

    Raises:
      OSError: there is no such checkpoint, or it can't be read.
    """
    optimizer = optimizers.create(model, flatten(model, nnx.Param), config.optimizer)
    state, step = Checkpoints(workdir, read_only=True).restore_weights(
        which, initial_weights(model, optimizer, config.ema)
    )
    assign(model, weights(state, averaged=True))
    return step


def record(config: ConfigDict, model: nnx.Module, task: Task, split: str | None = None) -> dict[str, Any]:
    """Evaluates ``model`` and returns a record: model, dataset, split, number of examples and the figures.

    Raises:
      ValueError: the task has no such split, or it is empty.
    """
    split = split or held_out(task)
    mesh = sharding.create_mesh(config.mesh)
    evaluate = Evaluator(Skeleton(model), task, mesh, config.batch_size, config.workers)
    arrays = flatten(model, nnx.Param) | flatten(model, nnx.BatchStat)
    arrays = sharding.place(
        arrays,
        {
            name: sharding.of_parameter(mesh, name, leaf.shape, sharding.rules_of(model))
            for name, leaf in arrays.items()
        },
    )
    with jax.set_mesh(mesh):
        done = evaluate(arrays, split)
    dataset = getattr(task, "dataset_name", config.task.name)
    return {"model": config.model, "dataset": dataset, "split": split, "examples": done.examples, **done.figures}
