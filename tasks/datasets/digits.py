"""The embedded data set: 1797 real handwritten digits, 8x8 pixels, 17 levels of gray.

E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
1998 (the test part, as scikit-learn ships it). No download: it is prepared from the installed
scikit-learn into an array_record of TFDS, without TensorFlow, once per data directory.

The split is fixed by this file: 360 images are the test split, chosen by :func:`tasks.datasets.split.hold_out` over the
keys "digits/0" ... "digits/1796" (scikit-learn's order); of the 1437 others, 144 (10 %), chosen by the same rule, are
the validation split, and 1293 the training split.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from tasks.datasets.split import hold_out

TEST_IMAGES = 360
VALIDATION_IMAGES = 144


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the indices, in scikit-learn's order, of each split."""
    keys = [f"digits/{i}" for i in range(len(labels))]
    test = hold_out(keys, labels.tolist(), TEST_IMAGES)
    rest = np.setdiff1d(np.arange(len(labels)), test)
    validation = rest[hold_out([keys[i] for i in rest], labels[rest].tolist(), VALIDATION_IMAGES)]
    return {"train": np.setdiff1d(rest, validation), "validation": validation, "test": np.asarray(test)}


class MixerZooDigits(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the embedded digits."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "1797 digits; 1293 train, 144 validation, 360 test."}  # noqa: RUF012  (TFDS's own form)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8x8 pixels of 0 to 16.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                    "index": tfds.features.Scalar(dtype=np.int64),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        from sklearn.datasets import load_digits  # needed for preparing only, and slow to import

        images, labels = load_digits(return_X_y=True)
        images = images.reshape(-1, 8, 8).astype(np.uint8)
        return {
            split: self._generate_examples(images, labels, indices) for split, indices in split_indices(labels).items()
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in indices.tolist():
            yield index, {"image": images[index], "label": int(labels[index]), "index": index}


def prepare(data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """Returns the builder, with its data on disk.

    TFDS writes into a temporary directory and renames it when complete, so a process that dies leaves no incomplete
    data; of two that prepare at the same time, one wins and both read its files.

    Args:
      data_dir: directory of TFDS data sets; None for TFDS's default (the environment variable TFDS_DATA_DIR, else
        ~/tensorflow_datasets).

    Raises:
      ValueError: the directory can't be written to and does not hold the data yet.
    """
    builder = MixerZooDigits(data_dir=data_dir, file_format="array_record")
    if _is_ready(builder):
        return builder
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS would announce a download that does not happen
            builder.download_and_prepare()
    except OSError as error:
        builder = MixerZooDigits(data_dir=data_dir, file_format="array_record")
        if not _is_ready(builder):  # otherwise another process has prepared it
            root = os.fspath(builder._data_dir_root)
            raise ValueError(
                f"can't write the digits data set under {root} ({error}): set TFDS_DATA_DIR to a directory that can be "
                f"written to"
            ) from error
    return builder


def _is_ready(builder: tfds.core.DatasetBuilder) -> bool:
    return builder.data_path.exists() and builder.is_prepared()  # for a missing folder, TFDS logs a warning


def _image(levels: np.ndarray) -> Image.Image:
    """A gray image of 0 to 255 of levels from 0 to 16."""
    return Image.fromarray((levels.astype(np.uint16) * 255 // 16).astype(np.uint8))


class Digits:
    """The digits in memory, as gray images of 0 to 255.

    Args:
      data_dir: directory of TFDS data sets; None for TFDS's default.
      train: number of training images, the first ones; None for all 1293.

    Raises:
      ValueError: ``train`` is not from 1 to 1293.
    """

    in_memory = True

    def __init__(self, data_dir: str | None = None, train: int | None = None):
        self._builder = prepare(data_dir)
        self.class_names = tuple(self._builder.info.features["label"].names)
        self.splits = ("train", "validation", "test")
        self._most = {} if train is None else {"train": train}
        self._read: dict[str, list[tuple[Image.Image, int]]] = {}
        there = self._builder.info.splits["train"].num_examples
        if train is not None and not 0 < train <= there:
            raise ValueError(f"train is a number of images from 1 to {there}, got {train}")
        self.report = ""

    def source(self, split: str) -> list[tuple[Image.Image, int]]:
        """Returns the (image, label) pairs of a split, which is read when first asked for."""
        if split not in self._read:
            rows = self._builder.as_data_source(split=split)
            together = rows.__getitems__(list(range(self._most.get(split, len(rows)))))  # half the time of one by one
            self._read[split] = [(_image(row["image"]), int(row["label"])) for row in together]
        return self._read[split]
