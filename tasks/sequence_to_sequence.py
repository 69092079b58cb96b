"""Sequence to sequence: write the target of a source, a translation or whatever else follows from it.

In training the decoder reads the true target, a token late: teacher forcing. Evaluation also writes each target, the
likeliest token at a time, without having seen it: "exact" is the part of targets that are written to the last token,
the one that ends them included, and "bleu" (:mod:`tasks.bleu`), where pairs are texts, compares their words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tokenization
from suggestions import unknown
from tasks.bleu import bleu
from tasks.datasets import pairs
from tasks.registry import register
from tasks.task import Batch, Metrics, Model

Write = Callable[[Any, jax.Array, jax.Array, int], jax.Array]
"""The targets (batch, length) int32 that a model writes for sources (batch, source_length) with a mask; traced."""
_END = 1  # of computed pairs
_USUAL = 128  # tokens of texts


class PairExamples:
    """Pairs as examples: "source" (source_length,) and "target" (target_length,) int32, each with its end token, the
    source of a text also with what the model begins it with, and then filled with 0, and "source_size", "target_size"
    () int32, how many tokens they have.
    """

    def __init__(self, task: SequenceToSequence, found: pairs.Pairs):
        self._task, self._pairs = task, found

    def __len__(self) -> int:
        return len(self._pairs)

    def get(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns one example; there is nothing to augment."""
        del rng
        found: dict[str, np.ndarray] = {}
        task = self._task
        for name, text, room in zip(("source", "target"), self._pairs[index], task.lengths, strict=True):
            before = [task.source_start] if name == "source" and task.source_start is not None else []
            tokens = [*before, *task.encode(text)[: room - 1 - len(before)].tolist(), task.end_token]
            row = np.zeros(room, np.int32)
            row[: len(tokens)] = tokens
            found |= {name: row, f"{name}_size": np.asarray(len(tokens), np.int32)}
        return found


@register("sequence_to_sequence")
class SequenceToSequence:
    """Targets of sources, for encoder-decoders.

    Args:
      dataset: "reverse", or a mapping with "name" ("reverse", "sort", "file") and the options of that set
        (:mod:`tasks.datasets.pairs`).
      source_length, target_length: tokens of the longest, with the one that ends them; longer texts are cut. None: as
        many as computed pairs have, 128 of texts.
      tokenizer: a ``tokenizer.json`` for texts; None reads bytes.
      separator: the token of that file that ends a text; None looks for the usual ones.
      label_smoothing: the share of a target that all tokens have in equal parts, in the training loss (Szegedy et al.,
        2016, arXiv:1512.00567, section 7).
      monitor: the figure that chooses the best weights: "exact", "accuracy" or, of texts, "bleu".
      start_token: what the model's decoder reads first.
      source_start: what the source of a text begins with; None for nothing.
      write: how a model writes.

    Raises:
      ValueError: unknown names or options (near ones are named), a number out of range, or data that can't be used.
    """

    needs: tuple[str, ...] = ("start_token", "source_start", "write")
    higher_is_better = True

    def __init__(
        self,
        dataset: str | Mapping[str, Any] = "reverse",
        source_length: int | None = None,
        target_length: int | None = None,
        tokenizer: str | None = None,
        separator: str | None = None,
        label_smoothing: float = 0.0,
        monitor: str = "exact",
        *,
        start_token: int,
        source_start: int | None = None,
        write: Write,
    ):
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is from 0 to less than 1, not {label_smoothing}")
        options = {"name": dataset} if isinstance(dataset, str) else dict(dataset)
        if "name" not in options:
            raise ValueError("dataset needs name=, such as 'reverse'")
        self.dataset_name = str(options.pop("name"))
        self._dataset = pairs.create(self.dataset_name, **options)
        self.splits, self.is_text = self._dataset.splits, self._dataset.vocab_size is None
        least, usual = (3, _USUAL) if self._dataset.longest is None else (self._dataset.longest + 1,) * 2
        self.lengths = (source_length or usual, target_length or usual)
        if min(self.lengths) < least:
            raise ValueError(f"source_length and target_length are at least {least} here, not {self.lengths}")
        figures = ("exact", "accuracy", *(["bleu"] if self.is_text else []))
        if monitor not in figures:
            raise ValueError(unknown("monitor", monitor, figures))
        self.tokenizer = tokenization.create(tokenizer, separator) if self.is_text else None
        self.source_start = source_start if self.is_text else None
        self.end_token = _END if self.tokenizer is None else self.tokenizer.separator
        self.report = "; ".join(filter(None, (self._dataset.report, getattr(self.tokenizer, "report", ""))))
        self.monitor, self._smoothing, self._start, self._write = monitor, label_smoothing, start_token, write

    def model_options(self) -> dict[str, Any]:
        """Returns vocab_size and end_token."""
        size = self._dataset.vocab_size if self.tokenizer is None else self.tokenizer.vocab_size
        return {"vocab_size": size, "end_token": self.end_token}

    def examples(self, split: str) -> PairExamples:
        """Returns the pairs of a split.

        Raises:
          ValueError: there is no such split.
        """
        if split not in self.splits:
            raise ValueError(unknown("split", split, self.splits))
        return PairExamples(self, self._dataset.pairs(split))

    def encode(self, text: Any) -> np.ndarray:
        """Returns the tokens of a source or target, without the one that ends it."""
        return np.asarray(text) if self.tokenizer is None else self.tokenizer.encode(text)

    def describe(self, split: str) -> str:
        """Returns how many pairs a split has."""
        return f"{len(self.examples(split)):,} pairs"

    def loss(self, model: Model, batch: Batch, rngs: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the mean cross entropy of a target's token, nats, with the smoothed target."""
        del rngs
        metrics = self._forced(model, batch, jnp.ones(batch["target"].shape[0], jnp.float32), self._smoothing)
        total, count = metrics["loss"]
        return total / count, metrics

    def evaluate(self, model: Model, batch: Batch) -> Metrics:
        """Returns "loss" (nats per token), "accuracy" (of the likeliest token after the true ones before it) and
        "exact" (of whole targets that the model writes).
        """
        return self.evaluate_rows(model, batch)[0]

    def evaluate_rows(self, model: Model, batch: Batch) -> tuple[Metrics, dict[str, jax.Array]]:
        """Returns what ``evaluate`` does and, of texts, "written" and "target" (rows, target_length)."""
        weight, target = batch["weight"], batch["target"]
        written = self._write(model, batch["source"], self._real(batch, "source"), target.shape[1])
        right = jnp.all((written == target) | ~self._real(batch, "target"), -1)
        exact = {"exact": (jnp.sum(right * weight), jnp.sum(weight))}
        rows = {"written": written, "target": target} if self.is_text else {}
        return {**self._forced(model, batch, weight, 0.0), **exact}, rows

    def scores(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns "bleu" of texts."""
        return {"bleu": bleu(*(map(self.decode, rows[name]) for name in ("written", "target")))} if rows else {}

    def decode(self, tokens: Any) -> str:
        """Returns the text of tokens up to the one that ends it."""
        assert self.tokenizer is not None
        listed = [int(token) for token in tokens]
        return self.tokenizer.decode(listed[: listed.index(self.end_token)] if self.end_token in listed else listed)

    @staticmethod
    def _real(batch: Batch, name: str) -> jax.Array:
        """(rows, length) bool: what is no filling."""
        return jnp.arange(batch[name].shape[1]) < batch[f"{name}_size"][:, None]

    def _forced(self, model: Model, batch: Batch, weight: jax.Array, smoothing: float) -> Metrics:
        target, real = batch["target"], self._real(batch, "target")
        read = jnp.concatenate([jnp.full_like(target[:, :1], self._start), target[:, :-1]], 1)
        logits = model(batch["source"], read, self._real(batch, "source"), real).astype(jnp.float32)
        normalizer = jax.nn.logsumexp(logits, -1)
        wanted = jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
        losses = normalizer - (1 - smoothing) * wanted - smoothing * jnp.mean(logits, -1)
        counted = real * weight[:, None]
        count = jnp.sum(counted)
        right = jnp.argmax(logits, -1) == target
        # What the model gives for filling may be not-a-number.
        return {
            "loss": (jnp.sum(jnp.where(real, losses, 0) * counted), count),
            "accuracy": (jnp.sum(right * counted), count),
        }
