"""The user's own text: a file, or a folder with all the text files under it.

Each file is in one split, by the SHA-256 of its path relative to the folder: 5 % test, 5 % validation. If there are so
few files that a split would be empty, each file is cut: its first 90 % are for training, the next 5 % for validation,
the last 5 % for the test. Hidden files, and files that are not UTF-8 text, are left out; the latter are counted in the
report.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from pathlib import Path

from tasks.datasets.split import HELD_OUT, SPLITS, split_of


class TextFiles:
    """Text files of the user.

    Args:
      path: a file or a folder.

    Raises:
      ValueError: no such file or folder, or no text in it.
    """

    splits: tuple[str, ...] = SPLITS
    report: str
    cache: str | None = None

    def __init__(self, path: str):
        root = Path(path).expanduser()
        if not root.exists():
            raise ValueError(f"there is no text at {path}: path= names a text file or a folder of text files")
        files = [root] if root.is_file() else _visible(root)
        texts: dict[str, bytes] = {}
        refused = []
        for file in files:
            name = file.name if root.is_file() else file.relative_to(root).as_posix()
            content = _text(file)
            if content is None:
                refused.append(name)
            elif content:
                texts[name] = content
        if not texts:
            raise ValueError(
                f"there is no UTF-8 text at {path}"
                + (f": {len(refused)} files are something else ({refused[0]}, ...)" if refused else "")
            )
        self.report = f"left out {len(refused)} files that are not UTF-8 text, such as {refused[0]}" if refused else ""
        self._documents = {split: [text for name, text in texts.items() if split_of(name) == split] for split in SPLITS}
        if not all(self._documents.values()):
            self._documents = dict(zip(SPLITS, zip(*map(_cut, texts.values())), strict=True))  # type: ignore[arg-type]
            note = f"too few files to hold some out ({len(texts)}): the last tenth of each is held out"
            self.report = f"{note}; {self.report}" if self.report else note

    def documents(self, split: str) -> Sequence[bytes]:
        """Returns the texts of a split."""
        return self._documents[split]


def _visible(root: Path) -> list[Path]:
    """All files under ``root``, except hidden ones, sorted by path."""
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(root).as_posix())


def _text(path: Path) -> bytes | None:
    """The content without a byte order mark, or None if it is not UTF-8 text."""
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        content.decode()
    except UnicodeDecodeError:
        return None
    return None if b"\0" in content else content


def _cut(text: bytes) -> tuple[bytes, bytes, bytes]:
    """The parts of a text for training, validation and test, cut between characters."""
    held = int(len(text) * HELD_OUT)
    first, second = (_beginning(text, len(text) - parts * held) for parts in (2, 1))
    return text[:first], text[first:second], text[second:]


def _beginning(text: bytes, at: int) -> int:
    """The index at which the character that contains byte ``at`` begins."""
    while at < len(text) and text[at] & 0xC0 == 0x80:  # 0b10......: a continuation byte
        at -= 1
    return at
