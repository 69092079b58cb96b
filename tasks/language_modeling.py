"""Language modeling: predict each next token of real text; bits per byte and perplexity.

A split is one long stream of tokens, with a separator before and after each document, cut into windows of
``sequence_length`` predictions. Evaluation predicts every token of the stream but the first separator exactly once; the
padding of the last window does not count. Training windows are shifted at random by up to a window, so that epochs have
different cuts.

With ``packing`` a row holds whole documents instead (:mod:`tasks.packing`), each with the separator before it, and the
model gets the segment id of each token. A document's last token predicts the separator that ends it, as in windows; no
token sees or predicts another document. Training and evaluation have the same rows, and both predict every token of the
stream but the first separator exactly once per epoch.

With ``order="stream"`` windows are not shuffled: the stream is cut into as many lanes as a batch has rows, and each row
of a batch continues the same row of the previous batch, in evaluation too. A model with a state then keeps it from
batch to batch (:mod:`training.streaming`).

Bits per byte make models with different tokenizers comparable: the total number of bits over the total number of bytes,
where the end of a document counts as one byte.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import tokenization
from tasks.datasets import texts
from tasks.packing import pack
from tasks.registry import register
from tasks.task import Batch, Metrics, Model

_LONGEST_PROMPT = 256  # tokens of a prompt taken from the data
_LONG_ENOUGH = 400  # minimum bytes of a document that serves as a prompt
_SCANNED = 2**24  # tokens scanned at a time
_HEADER = 8  # bytes before the tokens of a stored stream


class Stream:
    """The tokens of a split.

    Attributes:
      tokens: all tokens; the first and the last are separators.
      num_bytes: bytes of the text, plus one for each end of a document.
    """

    def __init__(self, tokens: np.ndarray, num_bytes: int):
        self.tokens, self.num_bytes = tokens, num_bytes


def read(dataset: texts.TextDataset, split: str, tokenizer: tokenization.Tokenizer) -> Stream:
    """Tokenizes a split; for a data set with a ``cache``, once, into a file that is then memory-mapped.

    Raises:
      ValueError: the split has no text, or the file can't be written.
    """
    if dataset.cache is None:
        separator = np.asarray([tokenizer.separator], np.min_scalar_type(tokenizer.vocab_size - 1))
        parts, size = [separator], 0
        for text in dataset.documents(split):
            parts += [tokenizer.encode(text), separator]
            size += len(text) + 1
        if not size:
            raise ValueError(f"the split {split!r} has no text")
        return Stream(np.concatenate(parts), size)
    path = Path(f"{dataset.cache}-{split}-{tokenizer.key}.tokens")
    if not path.exists():
        _write(path, dataset, split, tokenizer)
    size = int(np.fromfile(path, np.int64, 1)[0])
    return Stream(np.memmap(path, np.min_scalar_type(tokenizer.vocab_size - 1), "r", offset=_HEADER), size)


def _write(path: Path, dataset: texts.TextDataset, split: str, tokenizer: tokenization.Tokenizer) -> None:
    """Writes num_bytes, then the tokens, to a temporary file that is renamed when it is complete."""
    separator = np.asarray([tokenizer.separator], np.min_scalar_type(tokenizer.vocab_size - 1))
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    size = 0
    try:
        with unfinished.open("wb") as file:
            file.write(bytes(_HEADER) + separator.tobytes())
            for number in range(len(documents := dataset.documents(split))):
                text = documents[number]
                file.write(tokenizer.encode(text).tobytes() + separator.tobytes())
                size += len(text) + 1
            file.seek(0)
            file.write(np.int64(size).tobytes())
        if not size:
            raise ValueError(f"the split {split!r} has no text")
        unfinished.replace(path)
    except OSError as error:
        raise ValueError(
            f"can't write the tokens to {path} ({error.strerror or error}): make room, or prepare the set where you "
            "may write"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


class Windows:
    """Windows of a stream as examples.

    "tokens" (length,) int32, and "targets" (length,) int32: the next token of each; "real" (length,) float32: 1 for
    predictions that count; "bytes" () float32: the bytes of these.
    """

    def __init__(self, stream: Stream, length: int, separator: int):
        self._stream, self._length, self._separator = stream, length, separator
        self._predictions = len(stream.tokens) - 1
        self.num_bytes = stream.num_bytes
        self._bytes_per_token = stream.num_bytes / self._predictions

    def __len__(self) -> int:
        return -(-self._predictions // self._length)

    def get(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns one window; with ``rng``, shifted by up to a window."""
        start = index * self._length
        if rng is not None:
            start = min(start + int(rng.integers(self._length)), max(self._predictions - self._length, 0))
        piece = self._stream.tokens[start : start + self._length + 1].astype(np.int32)
        real = np.zeros(self._length, np.float32)
        real[: len(piece) - 1] = 1
        tokens = np.full(self._length + 1, self._separator, np.int32)
        tokens[: len(piece)] = piece
        return {
            "tokens": tokens[:-1],
            "targets": tokens[1:],
            "real": real,
            "bytes": np.asarray((len(piece) - 1) * self._bytes_per_token, np.float32),
        }


class Lanes(Windows):
    """Windows of a stream in order, as :class:`tasks.Streams`: the fields of :class:`Windows`, and "start", () bool,
    True for the first window of a lane.
    """

    def parts(self, lanes: int) -> int:
        """Windows of each lane."""
        return -(-len(self) // lanes)

    def part(self, number: int, lane: int, lanes: int) -> dict[str, np.ndarray]:
        """Returns a window of a lane; after the end of the stream "real" is 0 everywhere."""
        number %= self.parts(lanes)
        index = lane * self.parts(lanes) + number
        window = self.get(min(index, len(self) - 1), None)
        if index >= len(self):
            window |= {name: np.zeros_like(window[name]) for name in ("real", "bytes")}
        return window | {"start": np.asarray(number == 0)}


class PackedDocuments:
    """Rows of whole documents as examples.

    The fields of :class:`Windows`, and "segment_ids" (length,) int32: the index of a token's document in the row, from
    0. Padding after a document has its segment id and does not count.
    """

    def __init__(self, stream: Stream, length: int, separator: int, multiple: int = 1):
        self._stream, self._length, self._separator, self._multiple = stream, length, separator, multiple
        borders = _places(stream.tokens, separator)
        self._pieces = pack(borders, length, multiple)
        self.num_bytes = stream.num_bytes
        self.num_documents = len(borders) - 1
        self.filled = (len(stream.tokens) - 1) / (len(self) * length)
        self._bytes_per_token = stream.num_bytes / (len(stream.tokens) - 1)

    def __len__(self) -> int:
        return len(self._pieces.first) - 1

    def get(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Returns one row, the same with and without ``rng``."""
        del rng
        tokens, targets = np.full((2, self._length), self._separator, np.int32)
        real, ids = np.zeros(self._length, np.float32), np.zeros(self._length, np.int32)
        at = 0
        for number, piece in enumerate(range(*self._pieces.first[index : index + 2])):
            start, size = self._pieces.start[piece], self._pieces.size[piece]
            text = self._stream.tokens[start : start + size + 1]
            place = slice(at, at + size)
            tokens[place], targets[place], real[place], ids[at:] = text[:-1], text[1:], 1, number
            at += -(-size // self._multiple) * self._multiple
        return {
            "tokens": tokens, "targets": targets, "real": real, "segment_ids": ids,
            "bytes": np.asarray(real.sum() * self._bytes_per_token, np.float32),
        }  # fmt: skip


def _places(tokens: np.ndarray, token: int) -> np.ndarray:
    """The indices of ``token``, int64; a memory-mapped file is scanned part by part."""
    found = [
        np.flatnonzero(tokens[start : start + _SCANNED] == token) + start for start in range(0, len(tokens), _SCANNED)
    ]
    return np.concatenate(found)


@register("text")
class LanguageModeling:
    """Language modeling on text.

    Args:
      dataset: "stdlib", or a mapping with "name" ("stdlib", "files", "tfds") and the options of that set.
      sequence_length: number of tokens of a row.
      tokenizer: a ``tokenizer.json`` of Hugging Face's ``tokenizers``; None for bytes.
      separator: the tokenizer's token that ends a document; None looks for the usual ones.
      special_tokens: whether the text of a special token in a document is encoded as that token; otherwise as plain
        text.
      prompt: the beginning of the sample at the end of a run; None for the beginning of a held-out document.
      packing: rows of whole documents that do not see each other, for models that honor ``segment_ids``; a document
        that is longer than a row fills rows of its own, and the remainder counts as another document.
      order: "shuffled" windows, or "stream": windows in the order of the text, for models that keep a state.

    Raises:
      ValueError: unknown names or options (similar ones are suggested), or data that can't be used.
    """

    needs: tuple[str, ...] = ()
    monitor = "bits_per_byte"
    higher_is_better = False

    def __init__(
        self,
        dataset: str | Mapping[str, Any] = "stdlib",
        sequence_length: int = 256,
        tokenizer: str | None = None,
        separator: str | None = None,
        special_tokens: bool = False,
        prompt: str | None = None,
        packing: bool = False,
        order: Literal["shuffled", "stream"] = "shuffled",
    ):
        if sequence_length < 1:
            raise ValueError(f"sequence_length is at least 1, not {sequence_length}")
        if order not in ("shuffled", "stream"):
            raise ValueError(f'order={order!r}: "shuffled" or "stream"')
        if packing and order == "stream":
            raise ValueError(
                'order="stream" reads one document after another in lanes, and packing=True makes rows of whole '
                "documents: take one of them"
            )
        options = {"name": dataset} if isinstance(dataset, str) else dict(dataset)
        if "name" not in options:
            raise ValueError("dataset needs name=, such as 'stdlib'")
        self.dataset_name = str(options.pop("name"))
        self.tokenizer = tokenization.create(tokenizer, separator, special_tokens)
        self._length = sequence_length
        self._prompt = prompt
        self._dataset = texts.create(self.dataset_name, **options)
        self.splits = self._dataset.splits
        self.report = "; ".join(filter(None, (self._dataset.report, self.tokenizer.report)))
        self._packing, self._multiple, self._order = packing, 1, order
        self._examples: dict[str, Windows | PackedDocuments] = {}

    def model_options(self) -> dict[str, Any]:
        """Returns vocab_size."""
        return {"vocab_size": self.tokenizer.vocab_size}

    def align(self, multiple: int) -> None:
        """As in :class:`tasks.Aligns`, for packed documents.

        Raises:
          ValueError: ``multiple`` does not divide the length of a row.
        """
        if self._packing and self._length % multiple:
            nearest = max(round(self._length / multiple), 1) * multiple
            raise ValueError(
                f"packed documents begin at multiples of {multiple} tokens for this model, which must divide"
                f" sequence_length={self._length}: take {nearest}"
            )
        self._multiple, self._examples = multiple, {}

    def examples(self, split: str) -> Windows | PackedDocuments:
        """Returns the windows of a split, or its rows of packed documents.

        Raises:
          ValueError: there is no such split, or it has no text.
        """
        if split not in self.splits:
            raise ValueError(
                f"the text set {self.dataset_name} has no split {split!r}; it has: {', '.join(self.splits)}"
            )
        if split not in self._examples:
            stream, separator = read(self._dataset, split, self.tokenizer), self.tokenizer.separator
            if self._packing:
                self._examples[split] = PackedDocuments(stream, self._length, separator, self._multiple)
            else:
                kind = Lanes if self._order == "stream" else Windows
                self._examples[split] = kind(stream, self._length, separator)
        return self._examples[split]

    def describe(self, split: str) -> str:
        """Returns the numbers of bytes and tokens of a split."""
        examples = self.examples(split)
        if isinstance(examples, PackedDocuments):
            documents = f"{examples.num_documents:,} documents, {examples.num_bytes:,} bytes"
            return f"{documents}, in {len(examples):,} rows of {self._length:,} tokens, {examples.filled:.0%} filled"
        return f"{examples.num_bytes:,} bytes in {len(examples):,} windows of {self._length:,} tokens"

    def loss(self, model: Model, batch: Batch, rngs: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the mean cross entropy of a token, nats."""
        del rngs
        metrics = self._metrics(model, batch, jnp.ones(batch["tokens"].shape[0], jnp.float32))
        total, count = metrics["loss"]
        return total / count, metrics

    def evaluate(self, model: Model, batch: Batch) -> Metrics:
        """Returns "loss" (nats per token), "bits_per_byte" and "accuracy" (of the most probable token)."""
        return self._metrics(model, batch, batch["weight"])

    def derived(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Returns metrics that follow from those of a whole split: "perplexity" per token."""
        return {"perplexity": math.exp(min(figures["loss"], 700.0))}

    def sample_prompt(self) -> list[int]:
        """Returns the tokens that the sample at the end of a run continues."""
        if self._prompt is not None:
            text = self.tokenizer.encode(self._prompt.encode()).tolist()
        else:
            documents = self._dataset.documents("validation")
            first = (documents[i] for i in range(min(len(documents), 100)))
            document = next((text for text in first if len(text) >= _LONG_ENOUGH), documents[0])
            text = self.tokenizer.encode(document[: document.find(b"\n", 80) + 1 or 80]).tolist()
        return [self.tokenizer.separator, *text[:_LONGEST_PROMPT]]

    def decode(self, tokens: Any) -> str:
        """Returns the text of tokens."""
        return self.tokenizer.decode([int(token) for token in tokens])

    def _metrics(self, model: Model, batch: Batch, weight: jax.Array) -> Metrics:
        real = batch["real"] * weight[:, None]
        segments = {"segment_ids": batch["segment_ids"]} if "segment_ids" in batch else {}
        logits = model(batch["tokens"], **segments).astype(jnp.float32)
        own = jnp.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
        losses = jax.nn.logsumexp(logits, -1) - own
        total, count = jnp.sum(losses * real), jnp.sum(real)
        right = jnp.sum((jnp.argmax(logits, -1) == batch["targets"]) * real)
        return {
            "loss": (total, count),
            "bits_per_byte": (total / math.log(2), jnp.sum(batch["bytes"] * weight)),
            "accuracy": (right, count),
        }
