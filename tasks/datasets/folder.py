"""The user's own images: one folder a class, JPEG and PNG.

``path`` holds either the class folders, which a fixed rule divides into train (80 %), validation and
test (10 % each), or folders train/ and, where there are any, val/ and test/ that hold the class
folders. With train/ but no val/, a tenth of train/ is the validation split. A path of an image
relative to the folder decides (:func:`tasks.datasets.split.hold_out`), so that the split is the same
on every machine and stays put while nothing is added.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tasks.datasets.split import hold_out

SUFFIXES = (".jpg", ".jpeg", ".png")
FORMATS = ("JPEG", "PNG")
SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}
_END = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_SHOWN = 5  # faulty files named in a message


def upright(image: Image.Image) -> Image.Image:
    """Decodes an image, turns it as its EXIF says, and makes it gray ("L") or "RGB", 8 bits a channel."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow's convert would clip
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def fault(path: Path, smallest: int, thorough: bool) -> str | None:
    """Says what is wrong with an image file, or None.

    A full decoding is dear. Unless ``thorough``, it is left to those files whose end is not where the
    format has it (a download that was cut short), and damage in the middle of a file goes unseen.

    Args:
      path: the file.
      smallest: least width and height, pixels.
      thorough: decode every file.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if min(image.size) < smallest:
                return f"{image.width}x{image.height} pixels, under {smallest}"
            with path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 1024))
                ended = _END[str(image.format)] in file.read()
            if thorough or not ended:
                image.load()
    except Exception as error:  # decoders raise whatever they trip over
        return f"can't be decoded: {error}" if not isinstance(error, Image.UnidentifiedImageError) else "neither JPEG nor PNG inside"
    return None


class Files:
    """Image files and their labels, decoded when asked for."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int]):
        self.paths = tuple(paths)
        self.labels = tuple(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.paths[index]
        try:
            with Image.open(path, formats=FORMATS) as image:
                return upright(image), self.labels[index]
        except Exception as error:
            raise ValueError(
                f"{path} can't be decoded ({error}): remove it, or set --config.task.dataset.corrupt=skip, "
                "which decodes every image once at the start and leaves out those it can't"
            ) from error


class Folder:
    """Images in one folder a class.

    Args:
      path: the folder.
      corrupt: "refuse" stops at a file that is no sound image; "skip" leaves such files out, and says so in ``report``.
      smallest: least width and height of an image, pixels; smaller ones are treated as corrupt.

    Raises:
      ValueError: nothing is there, no images, fewer than two classes, classes of val/ or test/ that
        train/ lacks, faulty images (unless they are skipped), or too few images to divide.
    """

    in_memory = False

    def __init__(self, path: str, corrupt: str = "refuse", smallest: int = 16):
        if corrupt not in ("refuse", "skip"):
            raise ValueError(f"corrupt is 'refuse' or 'skip', not {corrupt!r}")
        self._root = Path(path).expanduser()
        self.report = ""
        if not self._root.is_dir():
            raise ValueError(f"there is no folder {self._root}: path= names the folder that holds one folder of images a class")
        found = {split: _images(folder) for split, folder in self._layout().items()}
        self.class_names = self._classes(found)
        paths = {split: [p for files in classes.values() for p in files] for split, classes in found.items()}
        faulty = self._faulty([p for of in paths.values() for p in of], corrupt, smallest)
        label = {name: i for i, name in enumerate(self.class_names)}
        self._files = {split: [(p, label[name]) for name, files in classes.items() for p in files if p not in faulty] for split, classes in found.items()}
        self._divide()
        self.splits = tuple(split for split in SPLIT_FOLDERS if split in self._files)

    def source(self, split: str) -> Files:
        """Returns the images of a split, classes in order and files sorted."""
        return Files(*zip(*self._files[split]))

    def _layout(self) -> dict[str, Path]:
        """The folder of each split that has one; all images are under "train" where none has, or where "train" is itself a class."""
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
            raise ValueError(f"{where} holds no images: it needs one folder a class with {', '.join(SUFFIXES)} files inside")
        if len(names) == 1:
            raise ValueError(f"{where} has one class only, {names[0]!r}: classification needs a folder for each of two or more")
        for split, classes in found.items():
            more = [name for name in classes if name not in names]
            if more:
                raise ValueError(f"the {split} folder of {self._root} has classes that train/ lacks: {', '.join(more[:_SHOWN])}")
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
            raise ValueError(f"{count} can't be used: {named}{more}. Remove them, or leave them out with --config.task.dataset.corrupt=skip")
        self.report = f"left out {count}: {named}{more}"
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
                raise ValueError(f"{self._root} has too few usable images for a {split} split: {everything} in train; add images, or folders train/ and val/")
        for label, name in enumerate(self.class_names):
            if label not in {of for _, of in self._files["train"]}:
                raise ValueError(f"class {name!r} of {self._root} has no usable image to train on: add some, or remove its folder")


def _images(folder: Path) -> dict[str, list[Path]]:
    """The image files below each class folder, both sorted; folders that hold none are no classes."""
    classes = {}
    for entry in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        files = [Path(at) / name for at, _, names in os.walk(entry) for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        if files:
            classes[entry.name] = sorted(files)
    return classes
