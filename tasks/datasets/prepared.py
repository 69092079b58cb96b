"""Any image classification set of TFDS that is on disk as array_record, read without TensorFlow.

The splits are: "test" is the set's own, or its "validation" if "test" is missing or unlabeled (ImageNet-1k);
"validation", which chooses the best checkpoint, is the set's own unless it is used as the test, else a fixed tenth of
"train", about 10 000 images at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from suggestions import unknown

_HELD_OUT_AT_MOST = 10_000  # enough to distinguish checkpoints: 0.4 % standard error of the accuracy


class Records:
    """Images and labels of some examples of a TFDS split.

    Args:
      source: the split's examples, in random access.
      image: key of the image.
      label: key of the label.
      positions: indices of the examples.
    """

    def __init__(self, source: Sequence[Any], image: str, label: str, positions: np.ndarray):
        self._source, self._image, self._label, self.positions = source, image, label, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        example = self._source[int(self.positions[index])]
        array = np.asarray(example[self._image])
        image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        return image if image.mode in ("L", "RGB") else image.convert("RGB"), int(example[self._label])


class Prepared:
    """A prepared data set of TFDS.

    Args:
      builder: its name in TFDS, such as "cifar10"; a configuration or version may follow as TFDS writes them.
      data_dir: directory of TFDS data sets; None for TFDS's default (TFDS_DATA_DIR, else ~/tensorflow_datasets).

    Raises:
      ValueError: an unknown name, a set that is not prepared, or not as array_record (the message has the command that
        prepares it), or one that is not image classification.
    """

    in_memory = False

    def __init__(self, builder: str, data_dir: str | None = None):
        self._name = builder
        self._builder = open_builder(builder, data_dir)
        train = self._open("train", data_dir)
        self._image, self._label = self._features()
        self.class_names = tuple(self._builder.info.features[self._label].names)
        self.report = ""
        self._splits = self._assign(train, data_dir)
        self.splits = tuple(self._splits)

    def source(self, split: str) -> Records:
        """Returns the images of a split."""
        return self._splits[split]

    def _features(self) -> tuple[str, str]:
        features = dict(self._builder.info.features.items())
        images = [key for key, of in features.items() if isinstance(of, tfds.features.Image)]
        labels = [key for key, of in features.items() if isinstance(of, tfds.features.ClassLabel)]
        named = [key for key in self._builder.info.supervised_keys or () if isinstance(key, str)]
        image = next((key for key in [*named, *images] if key in images), "")
        label = next((key for key in [*named, *labels] if key in labels), "")
        if not image or not label or features[image].np_dtype != np.uint8:
            raise ValueError(
                f"the TFDS set {self._name!r} is not image classification: it needs an 8-bit Image and a ClassLabel, "
                f"and has {', '.join(features)}"
            )
        return image, label

    def _open(self, split: str, data_dir: str | None) -> Sequence[Any]:
        try:
            return self._builder.as_data_source(split=split)
        except (KeyError, NotImplementedError) as error:
            command = f"python -m tasks.prepare {self._name}"
            where = self._builder.data_path
            if where.exists():
                message = (
                    f"{where} is not array_record: prepare the set once more elsewhere ({command} --data_dir=DIR),"
                    " then set --config.task.dataset.data_dir=DIR"
                )
            else:
                message = f"the TFDS set {self._name!r} is not prepared at {where}: run {command}" + (
                    f" --data_dir={data_dir}" if data_dir else ""
                )
            raise ValueError(message) from error

    def _assign(self, train: Sequence[Any], data_dir: str | None) -> dict[str, Records]:
        names = set(self._builder.info.splits) or {"train", "test"}  # mock_data of TFDS lists none and serves any
        own = {name: self._open(name, data_dir) for name in ("validation", "test") if name in names}
        own = {name: source for name, source in own.items() if len(source) and int(source[0][self._label]) >= 0}
        if "test" not in own and "validation" in own:
            own["test"] = own.pop("validation")
        everything = np.arange(len(train))
        splits = {name: self._records(source, np.arange(len(source))) for name, source in own.items()}
        taken = np.zeros(len(train), bool)
        stride = max(10, len(train) // _HELD_OUT_AT_MOST)
        for offset, name in enumerate(("validation", "test"), start=1):
            if name not in splits:
                held = everything % stride == stride - offset
                splits[name] = self._records(train, everything[held])
                taken |= held
        splits["train"] = self._records(train, everything[~taken])
        return {name: splits[name] for name in ("train", "validation", "test")}

    def _records(self, source: Sequence[Any], positions: np.ndarray) -> Records:
        if not len(positions):
            raise ValueError(f"the TFDS set {self._name!r} has too few examples to hold some out for validation")
        return Records(source, self._image, self._label, positions)


def open_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder of ``name``.

    Raises:
      ValueError: TFDS has no set of that name; the message suggests similar ones.
    """
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(unknown("TFDS set", name, tfds.list_builders(with_community_datasets=False))) from error
