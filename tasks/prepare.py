"""Downloads a TFDS set and writes it as array_record: ``python -m tasks.prepare cifar10``.

Most builders of TFDS need TensorFlow for this step, but not for reading the result. ImageNet-1k (imagenet2012) must be
downloaded manually: --manual_dir is the directory of its archives.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys

import tensorflow_datasets as tfds

from tasks.datasets import digits
from tasks.datasets.prepared import Prepared, open_builder


def prepare(name: str, data_dir: str | None = None, manual_dir: str | None = None) -> str:
    """Prepares the TFDS set ``name``, or the embedded "digits", and returns its path.

    Args:
      name: name of the set in TFDS.
      data_dir: directory of TFDS data sets; None for TFDS's default.
      manual_dir: directory of archives that must be downloaded manually.

    Raises:
      ValueError: an unknown name (similar ones are suggested), existing data that are not array_record or not image
        classification, or missing TensorFlow.
    """
    if name == "digits":
        return str(digits.prepare(data_dir).data_path)
    builder = open_builder(name, data_dir)
    if builder.data_path.exists():
        Prepared(name, data_dir)
        return str(builder.data_path)
    if importlib.util.find_spec("tensorflow") is None:  # fail before the download
        raise ValueError("preparing a TFDS set needs TensorFlow: python -m pip install -e '.[prepare]'")
    builder.download_and_prepare(
        file_format="array_record", download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
    )
    return str(builder.data_path)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m tasks.prepare", description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="the set's name in TFDS, such as cifar10")
    parser.add_argument(
        "--data_dir", help="where TFDS keeps data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"
    )
    parser.add_argument("--manual_dir", help="directory of manually downloaded archives")
    arguments = parser.parse_args()
    try:
        print(prepare(**vars(arguments)))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
