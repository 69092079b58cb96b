"""Converts text to tokens and back: as bytes, or by a tokenizer file of Hugging Face's ``tokenizers``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np


class Tokenizer(Protocol):
    """The interface of a tokenizer.

    Attributes:
      vocab_size: number of tokens.
      separator: the token between documents, and before the first.
      key: identifies the tokenizer and the way it is used, in names of cached files.
      report: a note for the run's output; may be empty.
      content: the content of its file; empty where there is none.
    """

    vocab_size: int
    separator: int
    key: str
    report: str
    content: bytes

    def encode(self, text: bytes) -> np.ndarray:
        """Returns the tokens (length,) of a UTF-8 text, in the smallest unsigned integer type that holds them."""
        ...

    def token_of(self, *spellings: str) -> int | None:
        """Returns the special token for the first of these spellings that the tokenizer has; None where it has none of
        them.
        """
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Decodes tokens to text, without separators; invalid UTF-8 is replaced."""
        ...


class Bytes:
    """One token per byte. Byte 0, which text does not contain, separates documents."""

    vocab_size, separator, key, report, content = 256, 0, "bytes", "", b""

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8)

    def token_of(self, *spellings: str) -> int | None:
        del spellings
        return None

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if 0 < token < 256).decode(errors="replace")


class ByT5Bytes(Bytes):
    """The byte vocabulary of ByT5 (Xue et al., 2022, arXiv:2105.13626): tokens 0 to 2 are padding, the end of a text
    (which separates documents) and the unknown token; byte b is token b + 3; the last 125 tokens are sentinels for
    masked spans.
    """

    vocab_size, separator, key = 384, 1, "byt5"
    _SPECIAL = ("<pad>", "</s>", "<unk>")

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8).astype(np.uint16) + len(self._SPECIAL)

    def token_of(self, *spellings: str) -> int | None:
        return next((self._SPECIAL.index(spelling) for spelling in spellings if spelling in self._SPECIAL), None)

    def decode(self, tokens: Sequence[int]) -> str:
        first = len(self._SPECIAL)
        return bytes(token - first for token in tokens if first <= token < first + 256).decode(errors="replace")


BYT5 = "byt5"
"""The name of ByT5's bytes where the path of a tokenizer file is expected."""
_USE = 2  # version of the way documents are encoded; files cached by earlier versions are not read

_SEPARATORS = ("<|endoftext|>", "</s>", "<eos>", "[SEP]", "<|end_of_text|>", "<s>")


class FileTokenizer:
    """A ``tokenizer.json``.

    Documents are encoded whole: truncation and padding in the file are meant for batches of sentences and are switched
    off (``report`` says so). By default the characters of a special token, such as "<|endoftext|>", are encoded as
    ordinary text.

    Args:
      path: the file.
      separator: the token that ends a document; None looks for the common ones.
      special_tokens: whether these characters are encoded as the special token.

    Raises:
      ValueError: the package ``tokenizers`` or the file is missing, the file is not a tokenizer, or it has no token to
        separate documents.
    """

    def __init__(self, path: str, separator: str | None = None, special_tokens: bool = False):
        try:
            import tokenizers
        except ImportError as error:
            raise ValueError(
                "a tokenizer file needs the package tokenizers: python -m pip install tokenizers, or leave tokenizer= "
                "out for bytes"
            ) from error
        file = Path(path).expanduser()
        if not file.is_file():
            raise ValueError(f"there is no tokenizer file {path}: tokenizer= names a tokenizer.json")
        self.content = content = file.read_bytes()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the package raises no narrower type
            raise ValueError(f"{path} is not a tokenizer of the package tokenizers: {error}") from error
        self.report = self._without_limits(path)
        self._tokenizer.encode_special_tokens = not special_tokens
        wanted = (separator,) if separator else _SEPARATORS
        found = [token for token in map(self._tokenizer.token_to_id, wanted) if token is not None]
        if not found:
            raise ValueError(
                f"{path} has none of the tokens {', '.join(wanted)}: name the one that ends a document with separator="
            )
        self.separator = found[0]
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.key = hashlib.sha256(f"{_USE} {special_tokens} ".encode() + content).hexdigest()[:16]
        self._dtype = np.min_scalar_type(self.vocab_size - 1)

    def _without_limits(self, path: str) -> str:
        """Switches truncation and padding off; returns a note on those that the file had."""
        limits = []
        if self._tokenizer.truncation is not None:
            limits.append(f"truncation to {self._tokenizer.truncation['max_length']} tokens")
            self._tokenizer.no_truncation()
        if self._tokenizer.padding is not None:
            limits.append("padding")
            self._tokenizer.no_padding()
        return f"{' and '.join(limits)} of {path} switched off: documents are encoded whole" if limits else ""

    def encode(self, text: bytes) -> np.ndarray:
        return np.asarray(
            self._tokenizer.encode(text.decode(errors="replace"), add_special_tokens=False).ids, self._dtype
        )

    def token_of(self, *spellings: str) -> int | None:
        return next((token for token in map(self._tokenizer.token_to_id, spellings) if token is not None), None)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode([token for token in tokens if token >= 0], skip_special_tokens=True)


def create(path: str | None = None, separator: str | None = None, special_tokens: bool = False) -> Tokenizer:
    """Returns the tokenizer of the file ``path``, ByT5's bytes for "byt5", or plain bytes for None.

    Args:
      path: a tokenizer.json, "byt5" or None.
      separator, special_tokens: as in :class:`FileTokenizer`; only for files.

    Raises:
      ValueError: as :class:`FileTokenizer`.
    """
    if path == BYT5:
        return ByT5Bytes()
    return FileTokenizer(path, separator, special_tokens) if path else Bytes()


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """Returns the text that ``tokens`` add to that of ``prompt``. They are decoded together, because some tokenizers
    drop a leading space.
    """
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *tokens])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(tokens)


def until(text: str, stops: Sequence[str]) -> str:
    """Returns the text before the first occurrence of any of ``stops``, or all of it."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def streamed(
    tokenizer: Tokenizer, pieces: Iterable[Sequence[int]], prompt: Sequence[int] = (), stops: Sequence[str] = ()
) -> Iterator[str]:
    """Yields the text that tokens, which arrive in pieces, add to that of ``prompt``, up to the first of ``stops``.

    An incomplete character is held back until it is complete, and a possible beginning of one of ``stops`` until it is
    resolved.
    """
    tokens: list[int] = []
    sent = ""
    for piece in pieces:
        tokens += [int(token) for token in piece if token >= 0]
        # An unfinished character decodes to the replacement character, at the end only.
        whole = until(continuation(tokenizer, prompt, tokens).rstrip("\ufffd"), stops)
        held = max((size for stop in stops for size in range(1, len(stop)) if whole.endswith(stop[:size])), default=0)
        whole = whole[: len(whole) - held]
        if whole.startswith(sent) and len(whole) > len(sent):
            yield whole[len(sent) :]
            sent = whole
    text = until(continuation(tokenizer, prompt, tokens), stops)
    if text.startswith(sent) and len(text) > len(sent):
        yield text[len(sent) :]
