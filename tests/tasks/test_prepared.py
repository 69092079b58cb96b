"""Sets that TFDS has prepared: read without TensorFlow, splits assigned, the remedy named where one is not there."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

import tasks
from tasks import prepare
from tasks.datasets.prepared import Prepared


@pytest.fixture
def cifar(tmp_path):
    with tfds.testing.mock_data(num_examples=50):
        yield Prepared("cifar10", str(tmp_path))


def positions(dataset):
    return {split: dataset.source(split).positions.tolist() for split in dataset.splits}


def test_cifar10_is_read_with_a_tenth_of_train_for_validation(cifar):
    assert cifar.splits == ("train", "validation", "test")
    at = positions(cifar)
    assert at["validation"] == [9, 19, 29, 39, 49]
    assert sorted(at["train"] + at["validation"]) == list(range(50))
    assert at["test"] == list(range(50))  # the set's own
    image, label = cifar.source("train")[0]
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert 0 <= label < 10
    assert len(cifar.class_names) == 10


def test_examples_are_sized_for_the_model(tmp_path, preprocess):
    with tfds.testing.mock_data(num_examples=20):
        task = tasks.create(
            "classification",
            dataset={"name": "tfds", "builder": "cifar10", "data_dir": str(tmp_path)},
            preprocess=preprocess,
            image_size=48,
        )
        assert task.model_options() == {"num_classes": 10, "in_channels": 3, "image_size": 48}
        for rng in (None, np.random.default_rng(0)):
            example = task.examples("train").get(3, rng)
            assert example["image"].shape == (48, 48, 3)
            assert example["image"].dtype == np.uint8


def test_imagenet_is_tested_on_its_validation_split(tmp_path):
    def source(self, split, **_):
        return [{"image": np.zeros((4, 4, 3), np.uint8), "label": -1 if split == "test" else 1}] * {
            "train": 200,
            "validation": 30,
            "test": 40,
        }[split]

    with pytest.MonkeyPatch.context() as patch, tfds.testing.mock_data(as_data_source_fn=source):
        patch.setattr(
            tfds.core.DatasetInfo, "splits", property(lambda _: dict.fromkeys(("train", "validation", "test")))
        )
        dataset = Prepared("imagenet2012", str(tmp_path))
    assert {split: len(dataset.source(split)) for split in dataset.splits} == {
        "train": 180,
        "validation": 20,
        "test": 30,
    }


def test_large_sets_hold_out_about_ten_thousand(tmp_path):
    class Many:
        def __len__(self):
            return 1_281_167

        def __getitem__(self, index):
            return {"image": np.zeros((4, 4, 3), np.uint8), "label": 0}

    with tfds.testing.mock_data(as_data_source_fn=lambda self, split, **_: Many()):
        dataset = Prepared("imagenet2012", str(tmp_path))
    assert len(dataset.source("validation")) == 10_009
    assert len(dataset.source("train")) == 1_281_167 - 10_009


def test_gray_images_stay_gray(tmp_path):
    with tfds.testing.mock_data(num_examples=20):
        assert Prepared("mnist", str(tmp_path)).source("train")[0][0].mode == "L"


def test_a_set_that_is_not_prepared_names_the_command(tmp_path):
    with pytest.raises(
        ValueError,
        match=rf"'cifar10' is not prepared at .*: run python -m tasks.prepare cifar10 --data_dir={tmp_path}$",
    ):
        Prepared("cifar10", str(tmp_path))


def test_another_format_names_the_remedy(tmp_path, digits_dir):
    shutil.copytree(digits_dir, tmp_path / "data")
    info = tmp_path / "data/mixer_zoo_digits/1.0.0/dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="is not array_record: prepare the set once more elsewhere"):
        Prepared("mixer_zoo_digits", str(tmp_path / "data"))


def test_an_unknown_set_names_near_ones(tmp_path):
    with pytest.raises(ValueError, match=r"unknown TFDS set 'cifar11': did you mean .*'cifar10'"):
        Prepared("cifar11", str(tmp_path))


def test_a_set_of_another_kind_is_refused(tmp_path):
    with (
        tfds.testing.mock_data(num_examples=20),
        pytest.raises(ValueError, match="'imdb_reviews' is not image classification"),
    ):
        Prepared("imdb_reviews", str(tmp_path))


def test_preparing_again_does_nothing_or_says_why_not(tmp_path, digits_dir):
    with pytest.raises(
        ValueError, match="not image classification"
    ):  # the digits are a Tensor: seen, and not written again
        prepare.prepare("mixer_zoo_digits", digits_dir)


def test_prepare_does_the_embedded_digits(tmp_path, capsys):
    assert prepare.prepare("digits", str(tmp_path)) == str(tmp_path / "mixer_zoo_digits/1.0.0")


def test_prepare_asks_for_tensorflow_before_it_downloads(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs TensorFlow: python -m pip install -e '.\[prepare\]'"):
        prepare.prepare("cifar10", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_command_ends_with_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tasks.prepare", "cifar11", "--data_dir", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("unknown TFDS set 'cifar11'")
    assert "Traceback" not in done.stderr
