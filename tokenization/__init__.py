"""Text to tokens and back: bytes, which need nothing, or a tokenizer file of Hugging Face's ``tokenizers``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np


class Tokenizer(Protocol):
    """Attributes:
    vocab_size: tokens.
    separator: the token between documents, and before the first.
    key: names the tokenizer, and how it is used, in the name of a file.
    report: a note about it for the run's output, or nothing.
    content: its file; empty where there is none.
    """

    vocab_size: int
    separator: int
    key: str
    report: str
    content: bytes

    def encode(self, text: bytes) -> np.ndarray:
        """Returns the tokens of a text, integers of the smallest type that holds them."""
        ...

    def token_of(self, *spellings: str) -> int | None:
        """Returns the special token with the first of these spellings that is one; None where none is."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, without separators; what is not valid UTF-8 is replaced."""
        ...


class Bytes:
    """A token for each byte. Byte 0, which text does not contain, separates documents."""

    vocab_size, separator, key, report, content = 256, 0, "bytes", "", b""

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, np.uint8)

    def token_of(self, *spellings: str) -> int | None:
        del spellings
        return None

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if 0 < token < 256).decode(errors="replace")


class ByT5Bytes(Bytes):
    """Bytes as ByT5 (Xue et al., 2022, arXiv:2105.13626) counts them: byte b is the token b + 3, after filling, the end
    of a text, which separates documents, and an unknown token; 125 after the bytes stand for what was cut out.
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
"""What names the bytes of ByT5 in place of a file."""
_USE = 2  # counts the ways in which documents were encoded so far: what an earlier one stored is not read

_SEPARATORS = ("<|endoftext|>", "</s>", "<eos>", "[SEP]", "<|end_of_text|>", "<s>")


class FileTokenizer:
    """A ``tokenizer.json``.

    Documents are encoded whole: truncation and padding that the file asks for are for batches of sentences, and
    switched off (``report`` says so). The letters of a special token, such as "<|endoftext|>", are text like any other.

    Args:
      path: the file.
      separator: the token that ends a document; None looks for the usual ones.
      special_tokens: whether those letters mean the token instead.

    Raises:
      ValueError: the package ``tokenizers`` is missing, no such file, not a tokenizer, or no token that separates
        documents.
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
        """Switches truncation and padding off; says which there were."""
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
    """Returns the tokenizer of a file, the bytes of ByT5 for "byt5", or bytes, which have no special tokens."""
    if path == BYT5:
        return ByT5Bytes()
    return FileTokenizer(path, separator, special_tokens) if path else Bytes()


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """Returns the text that ``tokens`` add to that of ``prompt``: some tokenizers drop the space that a text begins
    with.
    """
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *tokens])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(tokens)


def until(text: str, stops: Sequence[str]) -> str:
    """Returns the text before the first of ``stops``, or all of it."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def streamed(
    tokenizer: Tokenizer, pieces: Iterable[Sequence[int]], prompt: Sequence[int] = (), stops: Sequence[str] = ()
) -> Iterator[str]:
    """Yields the text that tokens add to that of ``prompt``, as they come in pieces, up to the first of ``stops``.

    A character is held back until it is whole, and what one of ``stops`` may begin with until it is clear.
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
