"""The user's own images: one folder per class, with files that :mod:`pictures` reads.

``path`` holds either the class folders, which a fixed rule divides into train (80 %), validation and test (10 % each),
or folders train/ and optionally val/ and test/ that hold the class folders. With train/ but no val/, a tenth of train/
is the validation split. The rule depends on the path of an image relative to the folder
(:func:`tasks.datasets.split.hold_out`), so the split is the same on every machine and stable as long as no images are
added. Unused files are counted in ``report``.
"""

from __future__ import annotations

import collections
import os
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from pictures import SUFFIXES, fault, read
from tasks.datasets.split import hold_out

SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}
_SHOWN = 5  # number of faulty files listed in a message


class Files:
    """Image files and their labels, decoded on access."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int]):
        self.paths = tuple(paths)
        self.labels = tuple(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        try:
            return read(self.paths[index]), self.labels[index]
        except ValueError as error:
            raise ValueError(
                f"{error}. Remove it, or set --config.task.dataset.corrupt=skip, which decodes every image once at the "
                f"start and leaves out those it can't"
            ) from error


class Folder:
    """Images in one folder per class.

    Args:
      path: the folder.
      corrupt: "refuse" raises for files that are not intact images; "skip" leaves them out and lists them in
        ``report``.
      smallest: minimum width and height of an image, pixels; smaller ones are treated as corrupt.

    Raises:
      ValueError: no such folder, no images, classes of val/ or test/ that train/ lacks, corrupt images (unless they are
        skipped), or too few images for the splits.
    """

    in_memory = False

    def __init__(self, path: str, corrupt: str = "refuse", smallest: int = 16):
        if corrupt not in ("refuse", "skip"):
            raise ValueError(f"corrupt is 'refuse' or 'skip', not {corrupt!r}")
        self._root = Path(path).expanduser()
        if not self._root.is_dir():
            raise ValueError(
                f"there is no folder {self._root}: path= names the folder that holds one folder of images per class"
            )
        layout = self._layout()
        unused = _Unused(self._root)
        found = {split: _images(folder, unused) for split, folder in layout.items()}
        if self._divided:
            unused.add(path for path in self._root.iterdir() if path not in layout.values())
        self.report = unused.report()
        self.class_names = self._classes(found)
        paths = {split: [p for files in classes.values() for p in files] for split, classes in found.items()}
        faulty = self._faulty([p for of in paths.values() for p in of], corrupt, smallest)
        label = {name: i for i, name in enumerate(self.class_names)}
        self._files = {
            split: [(p, label[name]) for name, files in classes.items() for p in files if p not in faulty]
            for split, classes in found.items()
        }
        self._divide()
        self.splits = tuple(split for split in SPLIT_FOLDERS if split in self._files)

    def source(self, split: str) -> Files:
        """Returns the images of a split, sorted by class and file name."""
        return Files(*zip(*self._files[split]))

    def _layout(self) -> dict[str, Path]:
        """The folder of each split that has one; if none has, or if "train" is itself a class, the whole folder is
        "train".
        """
        layout = {}
        for split, names in SPLIT_FOLDERS.items():
            there = [self._root / name for name in names if (self._root / name).is_dir()]
            if len(there) > 1:
                raise ValueError(f"{self._root} has both {there[0].name}/ and {there[1].name}/: keep one")
            if there:
                layout[split] = there[0]
        self._divided = "train" in layout and any(p.is_dir() for p in layout["train"].iterdir())
        return layout if self._divided else {"train": self._root}

    def _classes(self, found: dict[str, dict[str, list[Path]]]) -> tuple[str, ...]:
        names = tuple(found["train"])
        where = self._root / "train" if self._divided else self._root
        if not names:
            raise ValueError(
                f"{where} holds no images: it needs one folder per class with {', '.join(SUFFIXES)} files inside"
            )
        for split, classes in found.items():
            more = [name for name in classes if name not in names]
            if more:
                raise ValueError(
                    f"the {split} folder of {self._root} has classes that train/ lacks: {', '.join(more[:_SHOWN])}"
                )
            if not classes:
                raise ValueError(f"the {split} folder of {self._root} holds no images: fill it, or remove it")
        return names

    def _faulty(self, paths: list[Path], corrupt: str, smallest: int) -> set[Path]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            said = pool.map(lambda path: fault(path, smallest, thorough=corrupt == "skip"), paths)
            faults = {path: text for path, text in zip(paths, said) if text}
        if not faults:
            return set()
        named = "; ".join(f"{path.relative_to(self._root)} ({text})" for path, text in list(faults.items())[:_SHOWN])
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        count = f"{len(faults)} of {len(paths)} images in {self._root}"
        if corrupt == "refuse":
            raise ValueError(
                f"{count} can't be used: {named}{more}. Remove them, or leave them out with "
                f"--config.task.dataset.corrupt=skip"
            )
        self.report = "; ".join(filter(None, (f"left out {count}: {named}{more}", self.report)))
        return set(faults)

    def _divide(self) -> None:
        everything = len(self._files["train"])
        for split in ("test", "validation"):
            if split in self._files or (split == "test" and self._divided):
                continue
            files = self._files["train"]
            keys = [unicodedata.normalize("NFC", path.relative_to(self._root).as_posix()) for path, _ in files]
            held = set(hold_out(keys, [label for _, label in files], round(everything / 10)))
            self._files[split] = [file for i, file in enumerate(files) if i in held]
            self._files["train"] = [file for i, file in enumerate(files) if i not in held]
        for split, files in self._files.items():
            if not files:
                raise ValueError(
                    f"{self._root} has too few usable images for a {split} split: {everything} in train; add images, "
                    "or folders train/ and val/"
                )
        for label, name in enumerate(self.class_names):
            if label not in {of for _, of in self._files["train"]}:
                raise ValueError(
                    f"class {name!r} of {self._root} has no usable image to train on: add some, or remove its folder"
                )


def _images(folder: Path, unused: _Unused) -> dict[str, list[Path]]:
    """The image files below each class folder, both sorted; folders without images are not classes. All other files are
    added to ``unused``.
    """
    classes = {}
    for entry in sorted(folder.iterdir()):
        there = _below(entry) if entry.is_dir() and not entry.name.startswith(".") else []
        images = sorted(path for path in there if path.suffix.lower() in SUFFIXES)
        if images:
            classes[entry.name] = images
            unused.add(path for path in there if path.suffix.lower() not in SUFFIXES)
        else:
            unused.add([entry])
    return classes


def _below(folder: Path) -> list[Path]:
    """The files below a folder, except hidden ones."""
    return [Path(at) / name for at, _, names in os.walk(folder) for name in names if not name.startswith(".")]


class _Unused:
    """The unused files of a folder of images: images outside of class folders, and other files by suffix."""

    def __init__(self, root: Path):
        self._root = root
        self._images: list[Path] = []
        self._others: collections.Counter[str] = collections.Counter()
        self._empty: list[Path] = []

    def add(self, entries: Iterable[Path]) -> None:
        """Counts files, and the files in folders; hidden ones are ignored."""
        for entry in entries:
            if entry.name.startswith("."):
                continue
            files = _below(entry) if entry.is_dir() else [entry]
            if not files:
                self._empty.append(entry)
            self._images += [path for path in files if path.suffix.lower() in SUFFIXES]
            self._others.update(
                path.suffix.lower() or "no ending" for path in files if path.suffix.lower() not in SUFFIXES
            )

    def report(self) -> str:
        """A sentence for the user; "" if everything is used."""
        parts = []
        if self._images:
            parts.append(
                f"images outside of the folders of classes: {len(self._images)}, such as "
                f"{min(self._images).relative_to(self._root)}"
            )
        if self._others:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self._others.most_common(_SHOWN))
            parts.append(f"files of formats that are not read: {self._others.total()} ({kinds})")
        if self._empty:
            parts.append(f"empty folders: {len(self._empty)}, such as {min(self._empty).relative_to(self._root)}")
        return f"not used in {self._root}: {'; '.join(parts)}" if parts else ""
