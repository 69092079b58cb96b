"""The interface between the training loop and a task, and between a task and a model: arrays only.

A task defines a problem: its data, its loss and its metrics. It does not depend on a model; what it needs from one
(such as the size and normalization of images) is listed in ``needs`` and passed to its constructor. The loop does not
depend on a task: it shuffles and batches the examples, differentiates the loss and adds up the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

Model = Callable[..., jax.Array]
Batch = Mapping[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""Name to (sum, count), both scalars: pairs of microbatches, devices and batches add up exactly, and the value of the
metric is sum / count.
"""


@runtime_checkable
class ReportsLogits(Protocol):
    """A model that reports more logits in training than it returns: of separate heads or intermediate layers."""

    def aux_logits(self) -> dict[str, jax.Array]:
        """Returns the logits of the calls so far by name; traced."""
        ...


@runtime_checkable
class Examples(Protocol):
    """The examples of a split, in random access."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def get(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns one example as arrays, whose shapes and dtypes are the same for all examples.

        It depends on ``index`` and ``rng`` only, so any worker can compute it at any time.

        Args:
          index: from 0 to ``len(self) - 1``.
          rng: random numbers of the augmentation; None for no augmentation, as in evaluation.
        """
        ...


@runtime_checkable
class Streams(Examples, Protocol):
    """The examples of a split that is read in order: cut into lanes, which are read in parallel, one part at a time."""

    def parts(self, lanes: int) -> int:
        """The number of parts of each of ``lanes`` lanes: ``len(self)`` parts in all, plus empty ones if that is not
        divisible.
        """
        ...

    def part(self, number: int, lane: int, lanes: int) -> dict[str, np.ndarray]:
        """Returns part ``number`` of a lane, which restarts after its last part.

        It has "start", bool (): whether it is the lane's first part, before which the model's state must be reset.
        """
        ...


@runtime_checkable
class Task(Protocol):
    """A problem to train on. Keyword arguments of the constructor are the fields of ``config.task``.

    Attributes:
      needs: names of the keyword arguments that the caller must take from the model, such as ``("preprocess",)``.
      monitor: the metric of the validation split that chooses the best checkpoint.
      higher_is_better: whether a higher ``monitor`` is better.
      splits: names of its splits: "train" and "validation", and "test" if data are held out from every choice.
    """

    needs: tuple[str, ...]
    monitor: str
    higher_is_better: bool
    splits: tuple[str, ...]

    def model_options(self) -> dict[str, Any]:
        """Returns the options that the model must have: ``num_classes``, ``in_channels``, ``vocab_size``, ..."""
        ...

    def examples(self, split: str) -> Examples:
        """Returns the examples of one of ``splits``."""
        ...

    def loss(self, model: Model, batch: Batch, rngs: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the mean loss of a batch and its metrics, always with "loss"; traced.

        Args:
          model: in training mode.
          batch: examples stacked along a first axis.
          rngs: a PRNG key for randomness of the loss itself, such as mixup.
        """
        ...

    def evaluate(self, model: Model, batch: Batch) -> Metrics:
        """Returns the metrics of a batch; traced.

        Args:
          model: in evaluation mode.
          batch: as in ``loss``, and "weight" (batch,) float32: 0 for rows that only pad the batch.
        """
        ...


@runtime_checkable
class DerivesFigures(Protocol):
    """A task with metrics that are not means over examples but follow from a split's metrics, such as perplexity."""

    def derived(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Returns the additional metrics that follow from ``figures``, the metrics of a split."""
        ...


@runtime_checkable
class Scores(Protocol):
    """A task that ``KeepsRows``, with metrics of a whole split computed from the kept arrays: F1, AUROC, BLEU."""

    def scores(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns the metrics computed from the arrays of ``evaluate_rows`` for all examples."""
        ...


@runtime_checkable
class Aligns(Protocol):
    """A task whose rows may hold several documents, for models that count tokens in chunks from the start of a row."""

    def align(self, multiple: int) -> None:
        """Makes documents begin at multiples of ``multiple`` tokens in a row. Called before any example is read."""
        ...


@runtime_checkable
class Describes(Protocol):
    """A task that can describe its data."""

    def describe(self, split: str) -> str:
        """Returns a short description of a split: "1,293 images of 10 classes"."""
        ...


@runtime_checkable
class KeepsRows(Protocol):
    """A task that keeps arrays for each example of a split."""

    def evaluate_rows(self, model: Model, batch: Batch) -> tuple[Metrics, dict[str, jax.Array]]:
        """Returns the metrics of ``evaluate``, and small arrays (rows, ...); traced."""
        ...


@runtime_checkable
class Explains(KeepsRows, Protocol):
    """A task that can report more about a split than its metrics, from the arrays kept for each example."""

    def explain(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Returns a summary of those arrays for all examples, ready for JSON."""
        ...
