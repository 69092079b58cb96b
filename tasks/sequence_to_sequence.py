"""Sequence to sequence: generate the target of a source, such as its translation.

In training the decoder reads the true target, shifted by one token: teacher forcing. Evaluation also generates each
target by greedy decoding: "exact" is the fraction of targets that are reproduced completely, including the end token,
and "bleu" (:mod:`tasks.bleu`) is reported for pairs of texts.
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
"""Generates targets: maps (model, sources (batch, source_length), mask, length) to int32 (batch, length); traced."""
_END = 1  # end token of computed pairs
_USUAL = 128  # default number of tokens for texts


class PairExamples:
    """Pairs as examples: "source" (source_length,) and "target" (target_length,) int32, each with its end token, the
    source of a text also with the model's start token, padded with 0, and "source_size", "target_size" () int32, their
    numbers of tokens.
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
    """Prediction of targets from sources, for encoder-decoder models.

    Args:
      dataset: "reverse", or a mapping with "name" ("reverse", "sort", "file") and the options of that set
        (:mod:`tasks.datasets.pairs`).
      source_length, target_length: maximum number of tokens, including the end token; longer texts are cut. None: the
        length of computed pairs, 128 for texts.
      tokenizer: a ``tokenizer.json`` for texts; None for bytes.
      separator: the tokenizer's token that ends a text; None looks for the usual ones.
      label_smoothing: fraction of a target that is spread over all tokens, in the training loss (Szegedy et al., 2016,
        arXiv:1512.00567, section 7).
      monitor: the metric that chooses the best weights: "exact", "accuracy" or, for texts, "bleu".
      start_token: the decoder's first input.
      source_start: start token of the source of a text; None for none.
      write: the function that generates targets (:data:`Write`).

    Raises:
      ValueError: unknown names or options (similar ones are suggested), a number out of range, or data that can't be
        used.
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
        """Returns the tokens of a source or target, without the end token."""
        return np.asarray(text) if self.tokenizer is None else self.tokenizer.encode(text)

    def describe(self, split: str) -> str:
        """Returns the number of pairs of a split."""
        return f"{len(self.examples(split)):,} pairs"

    def loss(self, model: Model, batch: Batch, rngs: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the mean cross entropy per token of the targets, nats, with label smoothing."""
        del rngs
        metrics = self._forced(model, batch, jnp.ones(batch["target"].shape[0], jnp.float32), self._smoothing)
        total, count = metrics["loss"]
        return total / count, metrics

    def evaluate(self, model: Model, batch: Batch) -> Metrics:
        """Returns "loss" (nats per token) and "accuracy" (of the most probable token), both with teacher forcing, and
        "exact" (of whole generated targets).
        """
        return self.evaluate_rows(model, batch)[0]

    def evaluate_rows(self, model: Model, batch: Batch) -> tuple[Metrics, dict[str, jax.Array]]:
        """Returns ``evaluate``'s metrics and, for texts, "written" (generated) and "target" (rows, target_length)."""
        weight, target = batch["weight"], batch["target"]
        written = self._write(model, batch["source"], self._real(batch, "source"), target.shape[1])
        right = jnp.all((written == target) | ~self._real(batch, "target"), -1)
        exact = {"exact": (jnp.sum(right * weight), jnp.sum(weight))}
        rows = {"written": written, "target": target} if self.is_text else {}
        return {**self._forced(model, batch, weight, 0.0), **exact}, rows

    def scores(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns "bleu" for texts, else nothing."""
        return {"bleu": bleu(*(map(self.decode, rows[name]) for name in ("written", "target")))} if rows else {}

    def decode(self, tokens: Any) -> str:
        """Returns the text of the tokens before the end token."""
        assert self.tokenizer is not None
        listed = [int(token) for token in tokens]
        return self.tokenizer.decode(listed[: listed.index(self.end_token)] if self.end_token in listed else listed)

    @staticmethod
    def _real(batch: Batch, name: str) -> jax.Array:
        """(rows, length) bool, True for tokens that are not padding."""
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
        # Outputs for padding may be NaN.
        return {
            "loss": (jnp.sum(jnp.where(real, losses, 0) * counted), count),
            "accuracy": (jnp.sum(right * counted), count),
        }
