"""Labeled texts: the user's own, in one folder per class, and those of TFDS."""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds

from suggestions import unknown
from tasks.datasets.prepared_text import Documents, PreparedText
from tasks.datasets.split import SPLITS, split_of


class Files:
    """Text files with labels."""

    def __init__(self, files: list[tuple[Path, int]]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[bytes, None, int]:
        path, label = self._files[index]
        return path.read_bytes(), None, label


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


class TextFolders:
    """Text files in one folder per class, optionally below a folder for each split ("train", "test", and "validation"
    or "val"), like IMDB's aclImdb.

    A missing split is held out of the training files by the SHA-256 of a file's path
    (:func:`tasks.datasets.split.split_of`). A class that is missing in some split, such as IMDB's "unsup", is left out.

    Args:
      path: the folder.

    Raises:
      ValueError: no such folder, fewer than two classes, or a split without texts.
    """

    symbols: int | None = None
    levels, pairs, full = False, False, False
    length: int | None = None

    def __init__(self, path: str):
        root = Path(path).expanduser()
        if not root.is_dir():
            raise ValueError(f"there is no folder {path}: path= names one with a folder of text files for each class")
        roots = {name: name for name in _folders(root) if name in SPLITS} | (
            {"validation": "val"} if (root / "val").is_dir() else {}
        )
        places = {split: root / name for split, name in roots.items()} if "train" in roots else {"train": root}
        classes = [set(_folders(place)) for place in places.values()]
        self.class_names = tuple(sorted(set.intersection(*classes)))
        if len(self.class_names) < 2:
            raise ValueError(f"{places['train']} has fewer than two folders of texts, one for each class")
        left = sorted(set.union(*classes) - set(self.class_names))
        self.report = f"left out {', '.join(left)}: not all splits have that class" if left else ""
        found: dict[str, list[tuple[Path, int]]] = {split: [] for split in SPLITS}
        for split, place in places.items():
            for label, name in enumerate(self.class_names):
                for file in sorted(place.glob(f"{name}/**/*.txt")):
                    held = split_of(file.relative_to(root).as_posix()) if split == "train" else split
                    found[held if held not in places else split].append((file, label))
        if empty := [split for split in SPLITS if not found[split]]:
            raise ValueError(f"{path} has no texts (*.txt) for the split {empty[0]}")
        self._splits, self.splits = {split: Files(files) for split, files in found.items()}, SPLITS

    def source(self, split: str) -> Files:
        """Returns the texts of a split."""
        return self._splits[split]


class Records:
    """Texts and labels of some examples of a TFDS split."""

    def __init__(self, documents: Documents, label: str):
        self._documents, self._label = documents, label

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> tuple[bytes, None, int]:
        record = self._documents.record(index)
        return self._documents[index], None, int(record[self._label])


class PreparedTexts(PreparedText):
    """A prepared text classification set of TFDS, such as "imdb_reviews"; splits as in
    :class:`tasks.datasets.prepared_text.PreparedText`.

    Args:
      builder: its name in TFDS; a configuration or version may follow as TFDS writes them.
      feature, label: names of the features of the text and its class; None if there is only one of each.
      data_dir: directory of TFDS data sets; None for TFDS's default.

    Raises:
      ValueError: an unknown name, a set that is not prepared, or one without texts or classes.
    """

    symbols: int | None = None
    levels, pairs, full = False, False, False
    length: int | None = None

    def __init__(self, builder: str, feature: str | None = None, label: str | None = None, data_dir: str | None = None):
        super().__init__(builder, feature, data_dir)
        features = self._builder.info.features
        known = [key for key, of in features.items() if isinstance(of, tfds.features.ClassLabel)]
        if label is not None and label not in known:
            raise ValueError(unknown(f"class label of the TFDS set {builder}", label, known))
        if label is None and len(known) != 1:
            raise ValueError(f"the TFDS set {builder!r} has {len(known)} class labels: name one with label=")
        self._label = label or known[0]
        self.class_names = tuple(features[self._label].names)

    def source(self, split: str) -> Records:
        """Returns the texts of a split."""
        return Records(self.documents(split), self._label)
