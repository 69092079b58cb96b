"""Classification of sequences and of pairs of them: cross entropy over their labels, accuracy and F1.

A sequence is a text, as bytes or tokens, or an array of symbols, such as gray levels; it is padded at its end. Pairs
are read as one sequence or separately:

    single   [class] a
    joint    [class] a [separator] b [separator]      types 0 ... 0 1 ... 1       BERT (arXiv:1810.04805), figure 4
    dual     a  and  b, each mapped to a vector by the model          its head="dual" compares them

Without a tokenizer file, token 0 is padding, symbol s is token s + 1, and the class token and the separator come after
all symbols. With one they are the file's own ("[PAD]", "[CLS]", "[SEP]", or RoBERTa's), or, if it has none, come after
all its tokens. Levels can also be given as numbers from -1 to 1 instead of tokens (``inputs="linear"``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import tokenization
from tasks.confusion import auroc, explained, f1
from tasks.datasets import sequences
from tasks.registry import register
from tasks.task import Batch, Metrics, Model


class SequenceExamples:
    """Sequences of a split as examples.

    "tokens" (length,) int32, or "values" (length, 1) float32, and "label" int32; "mask" (length,) bool, True for real
    tokens, if lengths differ; for joint pairs "types" (length,) int32; for dual ones "tokens2" and "mask2".
    """

    def __init__(self, task: SequenceClassification, source: sequences.Source):
        self._task, self._source = task, source

    def __len__(self) -> int:
        return len(self._source)

    def get(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns one example; there is nothing to augment."""
        del rng
        first, second, label = self._source[index]
        return {**self._task.arrays(first, second), "label": np.asarray(label, np.int32)}


def _cut(first: np.ndarray, second: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Truncates two sequences to ``room`` tokens in total, the longer one first."""
    half = room // 2
    if len(first) + len(second) > room:
        if len(second) <= half:
            first = first[: room - len(second)]
        elif len(first) <= room - half:
            second = second[: room - len(first)]
        else:
            first, second = first[: room - half], second[:half]
    return first, second


@register("sequence_classification")
class SequenceClassification:
    """Classification of sequences.

    Args:
      dataset: name of a data set, or a mapping with "name" ("listops", "pathfinder", "images", "tsv", "folder", "tfds")
        and the options of that set.
      length: number of tokens of a row, including special ones; longer sequences are cut. None fits the longest
        sequence and the special tokens, or is 512 for texts.
      inputs: "tokens", or for data sets of levels "linear".
      class_token: whether a class token precedes each sequence, or each joint pair. None: for tokens, but not for dual
        pairs.
      pair: how pairs are read, "joint" or "dual".
      tokenizer: for texts, a ``tokenizer.json`` of Hugging Face's ``tokenizers``; None for bytes.
      label_smoothing: fraction of a target that is spread over all classes, in [0, 1).

    Raises:
      ValueError: unknown names or options (similar ones are suggested), options that can't be combined, or data that
        can't be used.
    """

    needs: tuple[str, ...] = ()
    monitor = "accuracy"
    higher_is_better = True

    def __init__(
        self,
        dataset: str | Mapping[str, Any] = "listops",
        length: int | None = None,
        inputs: Literal["tokens", "linear"] = "tokens",
        class_token: bool | None = None,
        pair: Literal["joint", "dual"] = "joint",
        tokenizer: str | None = None,
        label_smoothing: float = 0.0,
    ):
        options = {"name": dataset} if isinstance(dataset, str) else dict(dataset)
        if "name" not in options:
            raise ValueError("dataset needs name=, such as 'listops'")
        if inputs not in ("tokens", "linear") or pair not in ("joint", "dual"):
            raise ValueError(f'inputs is "tokens" or "linear", pair "joint" or "dual"; got {inputs!r} and {pair!r}')
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is in [0, 1), not {label_smoothing}")
        self.dataset_name = str(options.pop("name"))
        self._dataset = data = sequences.create(self.dataset_name, **options)
        self.class_names, self.splits = data.class_names, data.splits
        self._pair = pair if data.pairs else None
        self._linear = inputs == "linear"
        if self._linear and not data.levels:
            raise ValueError(
                f'inputs="linear" is for levels of a quantity; {self.dataset_name} has symbols: take "tokens"'
            )
        if tokenizer and data.symbols is not None:
            raise ValueError(f"tokenizer= is for texts; {self.dataset_name} has symbols of its own")
        wanted = not self._linear and self._pair != "dual" if class_token is None else class_token
        if self._linear and wanted:
            raise ValueError('inputs="linear" has no tokens: set class_token=False, and the model\'s pool="average"')
        self._layout(tokenizer, wanted)
        special = (self._class is not None) + 2 * (self._separator is not None)
        self._length = length or (512 if data.length is None else data.length + special)
        if self._length <= special:
            raise ValueError(f"length={self._length}: {special} special tokens leave no room")
        self._full = data.full and self._length == (data.length or 0) + special
        self._smoothing = label_smoothing
        self.report = "; ".join(filter(None, (data.report, self._tokenizer.report)))
        self.chance = 1 / len(self.class_names)
        self._examples: dict[str, SequenceExamples] = {}

    def _layout(self, tokenizer: str | None, class_token: bool) -> None:
        """Sets the vocabulary and the special tokens."""
        self._tokenizer = tokenization.create(tokenizer)
        symbols = self._tokenizer.vocab_size if self._dataset.symbols is None else self._dataset.symbols
        self._shift = 0 if tokenizer else 1
        self.vocab_size = symbols + self._shift

        def token(*spellings: str) -> int:
            """The tokenizer's token, else a new one."""
            if (found := self._tokenizer.token_of(*spellings)) is not None:
                return found
            self.vocab_size += 1
            return self.vocab_size - 1

        self._padding = token("[PAD]", "<pad>") if tokenizer else 0
        self._class = token("[CLS]", "<s>") if class_token else None
        self._separator = token("[SEP]", "</s>") if self._pair == "joint" else None
        # A model that gets a mask never sees padding, so its token can serve as the mask token.
        found = self._tokenizer.token_of("[MASK]", "<mask>")
        self.mask_token = self._padding if found is None else found
        self.special_tokens = tuple(x for x in (self._padding, self._class, self._separator) if x is not None)

    def model_options(self) -> dict[str, Any]:
        """Returns num_classes, and vocab_size or the options of "linear" inputs; for pairs, types or a dual head."""
        inputs: dict[str, Any] = (
            {"inputs": "linear", "in_features": 1} if self._linear else {"vocab_size": self.vocab_size}
        )
        pair: dict[str, Any] = {"types": 2} if self._pair == "joint" else {"head": "dual"}
        return {"num_classes": len(self.class_names), **inputs, **(pair if self._pair else {})}

    def examples(self, split: str) -> SequenceExamples:
        """Returns the examples of a split.

        Raises:
          ValueError: there is no such split.
        """
        if split not in self.splits:
            raise ValueError(f"the set {self.dataset_name} has no split {split!r}; it has: {', '.join(self.splits)}")
        if split not in self._examples:
            self._examples[split] = SequenceExamples(self, self._dataset.source(split))
        return self._examples[split]

    def arrays(self, first: sequences.Sequence, second: sequences.Sequence | None = None) -> dict[str, np.ndarray]:
        """The model's inputs for a sequence or a pair: the arrays of an example, without its label.

        Raises:
          ValueError: a single sequence for a data set of pairs, or two for another data set.
        """
        if (second is None) != (self._pair is None):
            raise ValueError(
                f"{self.dataset_name} has pairs, and the second sequence is missing"
                if second is None
                else f"{self.dataset_name} has single sequences: there is no use for a second one"
            )
        start = [] if self._class is None else [self._class]
        a = self._encoded(first)
        if second is None:
            return self._row([start, a])
        b = self._encoded(second)
        if self._pair == "dual":
            return {**self._row([start, a]), **{f"{name}2": row for name, row in self._row([start, b]).items()}}
        a, b = _cut(a, b, self._length - len(start) - 2)
        types = np.zeros(self._length, np.int32)
        types[len(start) + len(a) + 1 : len(start) + len(a) + len(b) + 2] = 1
        return {**self._row([start, a, [self._separator], b, [self._separator]]), "types": types}

    def _encoded(self, sequence: sequences.Sequence) -> np.ndarray:
        symbols = self._tokenizer.encode(sequence) if isinstance(sequence, bytes) else sequence
        return symbols.astype(np.int32) + self._shift

    def _row(self, parts: list[Any]) -> dict[str, np.ndarray]:
        """The concatenated parts, cut and padded to the length of a row, and their mask."""
        tokens = np.concatenate(parts).astype(np.int32)[: self._length]
        row = np.full(self._length, self._padding, np.int32)
        row[: len(tokens)] = tokens
        found = {} if self._full else {"mask": np.arange(self._length) < len(tokens)}
        if not self._linear:
            return {"tokens": row, **found}
        assert self._dataset.symbols is not None
        values = (row - self._shift).astype(np.float32) * (2 / (self._dataset.symbols - 1)) - 1
        return {"values": values[:, None], **found}

    def describe(self, split: str) -> str:
        """Returns the numbers of sequences and classes of a split, and the length of a row."""
        what = "pairs" if self._pair else "sequences"
        classes = f"{len(self.class_names):,} classes"
        return f"{len(self.examples(split)):,} {what} of {classes}, {self._length:,} tokens a row"

    def loss(self, model: Model, batch: Batch, rngs: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the mean cross entropy with smoothed targets."""
        del rngs
        logits = self._logits(model, batch)
        classes = logits.shape[-1]
        targets = jax.nn.one_hot(batch["label"], classes) * (1 - self._smoothing) + self._smoothing / classes
        losses = -jnp.sum(targets * jax.nn.log_softmax(logits), -1)
        return losses.mean(), _metrics(logits, batch["label"], losses, jnp.ones_like(losses))

    def evaluate(self, model: Model, batch: Batch) -> Metrics:
        """Returns "loss" (plain cross entropy) and "accuracy"."""
        return self.evaluate_rows(model, batch)[0]

    def evaluate_rows(self, model: Model, batch: Batch) -> tuple[Metrics, dict[str, jax.Array]]:
        """Returns the metrics, and for each example the label and the predicted class, and with two classes the log
        odds.
        """
        logits = self._logits(model, batch)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], -1)[:, 0]
        rows = {"label": batch["label"], "predicted": jnp.argmax(logits, -1)}
        if logits.shape[-1] == 2:
            rows["score"] = logits[:, 1] - logits[:, 0]
        return _metrics(logits, batch["label"], losses, batch["weight"]), rows

    def scores(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns "f1", that of class 1 of two, else the mean over classes; with two classes also "auroc"."""
        figures = {"f1": f1(rows["label"], rows["predicted"], len(self.class_names))}
        return figures | ({"auroc": auroc(rows["label"], rows["score"])} if "score" in rows else {})

    def explain(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Returns the number of examples and the accuracy of each class, and the most confused pairs of classes."""
        return explained(rows, self.class_names, "examples")

    def _logits(self, model: Model, batch: Batch) -> jax.Array:
        known = {name: batch[name] for name in ("mask", "types", "tokens2", "mask2") if name in batch}
        return model(batch["values" if self._linear else "tokens"], **known).astype(jnp.float32)


def _metrics(logits: jax.Array, labels: jax.Array, losses: jax.Array, weight: jax.Array) -> Metrics:
    right = jnp.argmax(logits, -1) == labels
    return {name: (jnp.sum(x * weight), jnp.sum(weight)) for name, x in (("loss", losses), ("accuracy", right))}
