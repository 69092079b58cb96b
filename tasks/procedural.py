"""The base of procedural tasks: examples that are computed, not stored, with a mask of the positions that count.

An example is a function of (seed, split, index) alone, so nothing is stored and any worker can make it. The training
split has more examples than a run will see. Validation has the training length; test has its own, which shows whether a
model generalizes to other lengths.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from suggestions import unknown
from tasks.task import Batch, Metrics, Model

SPLITS = ("train", "validation", "test")
NUM_TRAIN = 2**24
"""Number of examples of an epoch of a training split."""


class ProceduralExamples:
    """Computed examples: "tokens" (length,) int32, "targets" (length,) int32, the prediction target of each token, and
    "answers" (length,) float32, 1 where the target counts.
    """

    def __init__(self, task: Procedural, split: str, count: int, size: int):
        self._task, self._split, self._count, self._size = task, SPLITS.index(split), count, size

    def __len__(self) -> int:
        return self._count

    def get(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns one example; there is nothing to augment."""
        del rng
        own = np.random.Generator(np.random.Philox(key=[self._task.seed, self._split], counter=[0, 0, 0, index]))
        tokens, targets, answers = self._task.make(own, self._size, self._split == 0)
        return {
            "tokens": tokens.astype(np.int32),
            "targets": targets.astype(np.int32),
            "answers": answers.astype(np.float32),
        }


class Procedural:
    """Base of tasks whose examples are computed.

    Args:
      length: length of training and validation examples, in the task's own unit.
      test_length: length of test examples.
      num_eval: number of examples of validation, and of test.
      seed: seed of all examples.

    Raises:
      ValueError: a length below ``shortest``, or ``num_eval`` below 1.

    Attributes:
      chance: the accuracy of guessing by a model that knows the format of the task, but not the answers.
      vocab_size: number of different tokens.
      padding: the token that pads shorter examples, which the model gets masked; None if all have full length.
    """

    needs: tuple[str, ...] = ()
    monitor = "accuracy"
    higher_is_better = True
    splits = SPLITS
    shortest: int = 1
    chance: float
    vocab_size: int
    padding: int | None = None

    def __init__(self, length: int, test_length: int, num_eval: int = 512, seed: int = 0):
        for name, value in (("length", length), ("test_length", test_length)):
            if value < self.shortest:
                raise ValueError(f"{name} is at least {self.shortest} here, not {value}")
        if num_eval < 1:
            raise ValueError(f"num_eval is at least 1, not {num_eval}")
        self.length, self.test_length, self.num_eval, self.seed = length, test_length, num_eval, seed

    def make(self, rng: np.random.Generator, length: int, training: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (tokens, targets, answers) of one example: arrays whose size depends on ``length`` only."""
        raise NotImplementedError

    def model_options(self) -> dict[str, Any]:
        """Returns vocab_size."""
        return {"vocab_size": self.vocab_size}

    def examples(self, split: str) -> ProceduralExamples:
        """Returns the examples of a split.

        Raises:
          ValueError: there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(unknown("split", split, SPLITS))
        return ProceduralExamples(
            self,
            split,
            NUM_TRAIN if split == "train" else self.num_eval,
            self.test_length if split == "test" else self.length,
        )

    def loss(self, model: Model, batch: Batch, rngs: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the mean cross entropy of the answers, nats."""
        del rngs
        metrics = measure(self._logits(model, batch), batch, jnp.ones(batch["tokens"].shape[0], jnp.float32))
        total, count = metrics["loss"]
        return total / count, metrics

    def evaluate(self, model: Model, batch: Batch) -> Metrics:
        """Returns "loss", "accuracy" over answers, and "exact": the fraction of examples without a wrong answer."""
        return measure(self._logits(model, batch), batch, batch["weight"])

    def _logits(self, model: Model, batch: Batch) -> jax.Array:
        tokens = batch["tokens"]
        return model(tokens) if self.padding is None else model(tokens, mask=tokens != self.padding)


def measure(logits: jax.Array, batch: Batch, weight: jax.Array) -> Metrics:
    """Metrics of logits (batch, length, vocab_size) for a batch of procedural examples."""
    logits = logits.astype(jnp.float32)
    answers = batch["answers"] * weight[:, None]
    own = jnp.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    losses = jax.nn.logsumexp(logits, -1) - own
    right = jnp.argmax(logits, -1) == batch["targets"]
    exact = jnp.all(right | (batch["answers"] == 0), -1)
    count = jnp.sum(answers)
    return {
        "loss": (jnp.sum(losses * answers), count),
        "accuracy": (jnp.sum(right * answers), count),
        "exact": (jnp.sum(exact * weight), jnp.sum(weight)),
    }
