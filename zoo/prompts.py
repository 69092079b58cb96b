"""Prompts of a language model: texts or tokens of any lengths and, for an encoder-decoder, sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tokenization
from tokenization import Tokenizer

Prompt = str | Sequence[str] | Sequence[Sequence[int]] | Sequence[int] | np.ndarray | jax.Array
Stop = int | str | Sequence[int | str]
Rows = list[np.ndarray]
"""The tokens of each row."""


@dataclasses.dataclass(frozen=True)
class Given:
    """The checked inputs of a generation, as tokens.

    Attributes:
      prompts: tokens before the first new one.
      sources: tokens for the encoder; None for a model without one.
      stops: tokens that end a row, ascending.
      stop_strings: strings that end a row.
      reader: the tokenizer; None if no text was given.
      as_text: whether texts were given, so that texts are returned.
    """

    prompts: Rows
    sources: Rows | None
    stops: np.ndarray
    stop_strings: tuple[str, ...]
    reader: Tokenizer | None
    as_text: bool

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The new tokens of each row as text, up to a stop string; a target's text is without its end token."""
        assert self.reader is not None
        ends = set(self.stops.tolist()) if self.sources is not None else set()
        kept = [row[:-1] if row and row[-1] in ends else row for row in rows]
        return [
            tokenization.until(tokenization.continuation(self.reader, before.tolist(), row), self.stop_strings)
            for before, row in zip(self.prompts, kept, strict=True)
        ]


def given(
    model: Any,
    prompt: Prompt | None,
    mask: Any,
    source: Prompt | None,
    source_mask: Any,
    stop: Stop | None,
    tokenizer: str | Path | Tokenizer | None,
) -> Given:
    """Checks and encodes what is asked of ``model``; arguments as of :func:`zoo.generate`.

    Raises:
      ValueError: a model that can't generate, a missing or empty prompt or source, a source for a model that reads
        none, tokens outside the vocabulary, leading padding, or text without a tokenizer that fits.
    """
    name = getattr(model, "variant", None) or type(model).__name__
    if not hasattr(model, "extend_hidden"):
        raise ValueError(f"{name} is not a causal language model: it can't generate")
    reads_source = "source" in model.inputs
    if reads_source and source is None:
        raise ValueError(f"{name} writes what follows from a source: give source=, texts or tokens")
    if not reads_source and source is not None:
        raise ValueError(f"{name} has no encoder that could read a source: give it as the prompt")
    if prompt is None and not reads_source:
        raise ValueError(f"{name} continues a prompt: give one")
    c, strings = model.config, strings_of(stop)
    as_text = is_text(prompt) or is_text(source)
    reader = tokenizer_of(model, tokenizer) if as_text or strings else None
    sources = None
    if reads_source:
        begin, end = ([] if token is None else [token] for token in (c.source_start, c.end_token))
        sources = rows_of(encoded(source, reader, begin, end), source_mask, c.vocab_size, "source")
        first = [c.start_token]
        prompt = [first] * len(sources) if prompt is None else encoded(prompt, reader, first)
        prompts = rows_of(prompt, mask, c.vocab_size)
        if len(prompts) != len(sources):
            raise ValueError(f"there are {len(sources)} sources and {len(prompts)} prompts: give one for each, or none")
        stop = c.end_token if stop is None else stop
    else:
        prompts = rows_of(encoded(prompt, reader), mask, c.vocab_size)
        stop = reader.separator if stop is None and reader is not None and as_text else stop
    listed = [] if stop is None else [stop] if isinstance(stop, int | np.integer | str) else stop
    stops = np.unique(np.asarray([token for token in listed if not isinstance(token, str)], np.int32))
    return Given(prompts, sources, stops, tuple(strings), reader, as_text)


def is_text(prompt: Any) -> bool:
    """Whether a prompt is a text, or contains one."""
    return isinstance(prompt, str) or (isinstance(prompt, list | tuple) and any(isinstance(row, str) for row in prompt))


def strings_of(stop: Any) -> list[str]:
    """The strings among the stops."""
    listed = [stop] if isinstance(stop, str) else stop if isinstance(stop, list | tuple | set | frozenset) else []
    return [string for string in listed if isinstance(string, str)]


def tokenizer_of(model: Any, given: Any) -> Tokenizer:
    """The tokenizer of the model's texts.

    Raises:
      ValueError: there is none, or it has more tokens than the model.
    """
    size = getattr(getattr(model, "config", None), "vocab_size", 0)
    found = given if given is not None else getattr(model, "tokenizer", None)
    if found is None and size != tokenization.Bytes.vocab_size:
        raise ValueError(
            f"the model has {size} tokens, not bytes, and no run's tokenizer: name its tokenizer.json with tokenizer="
        )
    options = {} if found is None else {"path": str(found)} if isinstance(found, str | Path) else found
    reader: Tokenizer = tokenization.create(**options) if isinstance(options, Mapping) else options
    if reader.vocab_size > size:
        raise ValueError(
            f"the tokenizer has {reader.vocab_size} tokens and the model {size}: give the model's own with tokenizer="
        )
    return reader


def encoded(
    prompt: Any, tokenizer: Tokenizer | None, before: Sequence[int] | None = None, after: Sequence[int] = ()
) -> Any:
    """Prompts as tokens; those of texts stand between ``before`` and ``after``. ``before=None`` is the token that
    begins a document.

    Raises:
      ValueError: texts mixed with tokens.
    """
    if not is_text(prompt):
        return prompt
    assert tokenizer is not None
    texts = [prompt] if isinstance(prompt, str) else prompt
    if mixed := [number for number, text in enumerate(texts) if not isinstance(text, str)]:
        raise ValueError(
            f"prompts are texts or tokens, not both: prompt {mixed[0]} is {type(texts[mixed[0]]).__name__}"
        )
    before = [tokenizer.separator] if before is None else before
    return [[*before, *tokenizer.encode(text.encode()).tolist(), *after] for text in texts]


def rows_of(prompt: Any, mask: Any, vocab_size: int, what: str = "prompt") -> Rows:
    """The tokens of each prompt.

    Raises:
      ValueError: an empty prompt, tokens outside the vocabulary, or padding that does not trail.
    """
    rows: Rows
    if mask is not None:
        tokens, real = np.asarray(prompt), np.asarray(mask, bool)
        if tokens.ndim != 2 or tokens.shape != real.shape:
            raise ValueError(
                f"with a mask the {what} is an array (batch, length) of the mask's shape: {what} {tokens.shape}, mask "
                f"{real.shape}"
            )
        if (real[:, 1:] & ~real[:, :-1]).any():
            raise ValueError("padding must trail: the mask of a row is True for its first tokens and False behind them")
        rows = [row[keep] for row, keep in zip(tokens, real, strict=True)]
    else:
        flat = len(prompt) > 0 and np.ndim(prompt[0]) == 0
        rows = [np.asarray(row) for row in ([prompt] if flat else prompt)]
    if not rows or any(row.size == 0 for row in rows):
        raise ValueError(f"each {what} needs at least one token: begin with the token that stands between documents")
    for number, row in enumerate(rows):
        if not np.issubdtype(row.dtype, np.integer):
            raise ValueError(f"{what} {number} holds {row.dtype} values: tokens are integers (encode text first)")
        if row.min() < 0 or row.max() >= vocab_size:
            wrong = row[(row < 0) | (row >= vocab_size)][0]
            raise ValueError(
                f"{what} {number} holds the token {wrong}: the model's vocabulary is 0 to {vocab_size - 1}"
            )
    return rows
