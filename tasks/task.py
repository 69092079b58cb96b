"""The interface between the training loop and a task, and between a task and a model: arrays only.

A task owns a problem: its data, its loss and its measure of success. It knows no model; what it
needs from one (the size and normalization of its images, say) it names in ``needs`` and is given when
it is made. The loop knows no task: it shuffles and batches the examples, differentiates the loss
and adds up the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

Model = Callable[..., jax.Array]
Batch = Mapping[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""Name to (sum, count), both scalars: pairs of microbatches, devices and batches add up exactly, and the figure is sum
/ count.
"""


@runtime_checkable
class ReportsLogits(Protocol):
    """A model in training that reports more logits than it returns: of its heads apart, or of layers on the way."""

    def aux_logits(self) -> dict[str, jax.Array]:
        """Returns those of the calls so far by name; traced."""
        ...


@runtime_checkable
class Examples(Protocol):
    """The examples of a split, in random access."""

    def __len__(self) -> int:
        """How many examples there are."""
        ...

    def get(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns one example as arrays whose shapes and dtypes are those of every other one.

        It depends on ``index`` and ``rng`` alone, so that any worker may compute it at any time.

        Args:
          index: from 0 to ``len(self) - 1``.
          rng: the source of augmentation; None gives the form used in evaluation.
        """
        ...


@runtime_checkable
class Streams(Examples, Protocol):
    """The examples of a split that is read in order: cut into lanes, which are read side by side, a part at a time."""

    def parts(self, lanes: int) -> int:
        """Parts of each of ``lanes`` lanes; ``len(self)`` in all, and where that is not divisible, empty ones."""
        ...

    def part(self, number: int, lane: int, lanes: int) -> dict[str, np.ndarray]:
        """Returns part ``number`` of a lane, which begins anew after its last one.

        It has "start", bool (): whether it is the lane's first, to which what was read before means nothing.
        """
        ...


@runtime_checkable
class Task(Protocol):
    """A problem to train on. Keyword arguments of the constructor are the fields of ``config.task``.

    Attributes:
      needs: names of the keyword arguments that the caller takes from the model, such as
        ``("preprocess",)``.
      monitor: the metric of the validation split that chooses the best checkpoint.
      higher_is_better: whether more of ``monitor`` is better.
      splits: the splits there are: "train" and "validation", and "test" where something is held
        out from every choice.
    """

    needs: tuple[str, ...]
    monitor: str
    higher_is_better: bool
    splits: tuple[str, ...]

    def model_options(self) -> dict[str, Any]:
        """Returns what the model must be made with: ``num_classes``, ``in_channels``, ``vocab_size``, ..."""
        ...

    def examples(self, split: str) -> Examples:
        """Returns the examples of one of ``splits``."""
        ...

    def loss(self, model: Model, batch: Batch, rngs: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the mean loss of a batch and its metrics, always with "loss"; traced.

        Args:
          model: in training mode.
          batch: examples stacked along a first axis.
          rngs: a PRNG key for what is random about the loss itself, such as mixup.
        """
        ...

    def evaluate(self, model: Model, batch: Batch) -> Metrics:
        """Returns the metrics of a batch; traced.

        Args:
          model: in evaluation mode.
          batch: as in ``loss``, and "weight" (batch,) float32: 0 for the rows that only fill the batch.
        """
        ...


@runtime_checkable
class DerivesFigures(Protocol):
    """A task with figures that are not means over examples but follow from those of a whole split, such as
    perplexity."""

    def derived(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Returns the figures that follow from ``figures``."""
        ...


@runtime_checkable
class Scores(Protocol):
    """A task that ``KeepsRows``, with figures of a whole split that follow from what it keeps of each example: F1, the
    area under a curve, BLEU."""

    def scores(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns the figures that follow from the arrays of ``evaluate_rows`` for all examples."""
        ...


@runtime_checkable
class Aligns(Protocol):
    """A task whose rows may hold several documents, for models that count tokens in chunks from the start of a row."""

    def align(self, multiple: int) -> None:
        """Lets documents begin at multiples of so many tokens of a row. Called before any example is read."""
        ...


@runtime_checkable
class Describes(Protocol):
    """A task that can describe its data."""

    def describe(self, split: str) -> str:
        """Returns what a split holds in a few words: "1,293 images of 10 classes"."""
        ...


@runtime_checkable
class KeepsRows(Protocol):
    """A task that keeps something of each example of a split."""

    def evaluate_rows(self, model: Model, batch: Batch) -> tuple[Metrics, dict[str, jax.Array]]:
        """Returns what ``evaluate`` does, and small arrays (rows, ...); traced."""
        ...


@runtime_checkable
class Explains(KeepsRows, Protocol):
    """A task that can report more on a split than its figures, from what it keeps of each example."""

    def explain(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Returns a summary of those arrays for all examples, ready for JSON."""
        ...
