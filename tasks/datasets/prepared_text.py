"""Any text set of TFDS that is on disk as array_record (lm1b, pg19, tiny_shakespeare, ...), read without TensorFlow.

The set's own splits are used. A missing "validation" or "test" is the 5 % of "train" that
:func:`tasks.datasets.split.split_of` assigns to it by the example's number.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from suggestions import unknown
from tasks.datasets.prepared import open_builder
from tasks.datasets.split import SPLITS, split_of


class Documents(Sequence[bytes]):
    """Texts of some examples of a TFDS split."""

    def __init__(self, source: Sequence[Any], feature: str, positions: np.ndarray):
        self._source, self._feature, self._positions = source, feature, positions

    def __len__(self) -> int:
        return len(self._positions)

    def record(self, index: int) -> Any:
        """All features of an example."""
        return self._source[int(self._positions[index])]

    def __getitem__(self, index: Any) -> Any:
        text = self.record(index)[self._feature]
        return text if isinstance(text, bytes) else str(text).encode()


class PreparedText:
    """A prepared text set of TFDS.

    Args:
      builder: its name in TFDS, such as "lm1b"; a configuration or version may follow as TFDS writes them.
      feature: name of the text feature; None for "text", or the only text feature.
      data_dir: directory of TFDS data sets; None for TFDS's default (TFDS_DATA_DIR, else ~/tensorflow_datasets).

    Raises:
      ValueError: an unknown name, a set that is not prepared, or not as array_record (the message has the command that
        prepares it), or one without text.
    """

    splits: tuple[str, ...] = SPLITS
    report: str = ""
    cache: str | None

    def __init__(self, builder: str, feature: str | None = None, data_dir: str | None = None):
        self._builder = open_builder(builder, data_dir)
        texts = [key for key, of in self._builder.info.features.items() if isinstance(of, tfds.features.Text)]
        feature = feature or ("text" if "text" in texts else texts[0] if len(texts) == 1 else None)
        if feature is None:
            raise ValueError(
                f"the TFDS set {builder!r} has {len(texts) or 'no'} texts{': ' * bool(texts)}{', '.join(texts)}: name "
                f"one with feature="
            )
        if feature not in texts:
            raise ValueError(unknown(f"text feature of the TFDS set {builder}", feature, texts))
        command = f"python -m tasks.prepare {builder}" + (f" --data_dir={data_dir}" if data_dir else "")
        names = set(self._builder.info.splits) or set(SPLITS)  # mock_data of TFDS lists none and serves any
        try:
            sources = {name: self._builder.as_data_source(split=name) for name in SPLITS if name in names}
        except (KeyError, NotImplementedError) as error:
            raise ValueError(
                f"{self._builder.data_path} does not hold the TFDS set {builder!r} as array_record: run {command}"
            ) from error
        if "train" not in sources:
            raise ValueError(f"the TFDS set {builder!r} has no split to train on: it has {', '.join(names)}")
        self._splits = {name: Documents(source, feature, np.arange(len(source))) for name, source in sources.items()}
        lacking = [name for name in SPLITS if name not in sources]
        if lacking:
            place = np.asarray([split_of(f"{builder}/{i}") for i in range(len(sources["train"]))])
            for name in lacking:
                self._splits[name] = Documents(sources["train"], feature, np.flatnonzero(place == name))
            self._splits["train"] = Documents(sources["train"], feature, np.flatnonzero(~np.isin(place, lacking)))
        self.cache = os.fspath(self._builder.data_path / f"mixer_zoo-{feature}")

    def documents(self, split: str) -> Documents:
        """Returns the texts of a split."""
        return self._splits[split]
