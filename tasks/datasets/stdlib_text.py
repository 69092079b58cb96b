"""The embedded text: the source of Python's own standard library, real text on any machine, with no download.

About 11 MB in about a thousand modules. Excluded are the test suites, which some systems don't install, installed
packages, pydoc's manual, and files that are generated when Python is built. Prepared once per Python version into an
array_record of TFDS, without TensorFlow.

The split is by file: the SHA-256 of a module's path within the library ("json/decoder.py") puts 5 % of
the modules into the test split and 5 % into the validation split (:func:`tasks.datasets.split.split_of`).
A module that two versions of Python share is in the same split in both.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tasks.datasets.split import SPLITS, split_of

_LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "pydoc_data", "__pycache__", "site-packages", "dist-packages", "lib-dynload"}
)
_VERSION = f"python-{platform.python_version()}"
_FEWEST = 200
"""Minimum number of modules for the source of the standard library to count as present."""


def modules(root: Path) -> list[Path]:
    """The modules that make up the text, relative to ``root``, in the order of their paths."""
    found = (path.relative_to(root) for path in root.rglob("*.py"))
    kept = (path for path in found if not _LEFT_OUT & set(path.parts) and not path.name.startswith("_sysconfigdata"))
    return sorted(kept, key=Path.as_posix)


def source_of(path: Path) -> bytes:
    """The text of a module, with "\\n" line endings on every system."""
    return path.read_bytes().replace(b"\r\n", b"\n")


class MixerZooPythonSource(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the standard library's source; its configuration is the Python version."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Modules without tests; 5 % test and 5 % validation, by path."}  # noqa: RUF012
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=_VERSION)]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Source of Python's standard library, one module an example.",
            features=tfds.features.FeaturesDict(
                {"path": tfds.features.Text(), "text": tfds.features.Tensor(shape=(None,), dtype=np.uint8)}
            ),
            homepage="https://docs.python.org/3/library/",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = modules(root)
        if len(paths) < _FEWEST:
            raise ValueError(
                f"this Python has no source of its standard library under {root}: name your own text, as in "
                f"dataset.name=files dataset.path=DIR"
            )
        return {
            split: self._generate_examples(root, [p for p in paths if split_of(p.as_posix()) == split])
            for split in SPLITS
        }

    def _generate_examples(self, root: Path, paths: list[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, path in enumerate(paths):
            yield number, {"path": path.as_posix(), "text": np.frombuffer(source_of(root / path), np.uint8)}


def prepare(data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """Returns the builder, with its data on disk.

    Args:
      data_dir: directory of TFDS data sets; None for TFDS's default (the environment variable TFDS_DATA_DIR, else
        ~/tensorflow_datasets).

    Raises:
      ValueError: the directory can't be written to and does not hold the data yet, or this Python
        comes without its source.
    """
    builder = MixerZooPythonSource(config=_VERSION, data_dir=data_dir, file_format="array_record")
    if builder.data_path.exists() and builder.is_prepared():  # for a missing folder, TFDS logs a warning
        return builder
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS would announce a download that does not happen
            builder.download_and_prepare()
    except OSError as error:
        builder = MixerZooPythonSource(config=_VERSION, data_dir=data_dir, file_format="array_record")
        if not builder.is_prepared():  # otherwise another process has prepared it
            root = os.fspath(builder._data_dir_root)
            raise ValueError(
                f"can't write the text data set under {root} ({error}): set TFDS_DATA_DIR to a directory that can be "
                f"written to"
            ) from error
    return builder


class StandardLibrary:
    """The embedded text.

    Args:
      data_dir: directory of TFDS data sets; None for TFDS's default.
    """

    splits: tuple[str, ...] = SPLITS
    report: str = ""
    cache: str | None = None

    def __init__(self, data_dir: str | None = None):
        self._builder = prepare(data_dir)

    def documents(self, split: str) -> Sequence[bytes]:
        """Returns the modules of a split, in the order of their paths."""
        source = self._builder.as_data_source(split=split)
        return [np.asarray(source[i]["text"]).tobytes() for i in range(len(source))]
