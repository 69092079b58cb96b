"""The embedded digits: an exact, fixed, stratified split, written once even when several processes write it."""

import hashlib
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tasks.datasets import digits
from tasks.datasets.split import hold_out

SIZES = {"train": 1293, "validation": 144, "test": 360}
CHECKSUM = "e9819d1dc7af2d5d1b5f17edc5a1c81d9392ac639a2bb5ef2323e3d487bfdf31"


@pytest.fixture(scope="module")
def builder(digits_dir):
    return digits.prepare(digits_dir)


@pytest.fixture(scope="module")
def indices(builder):
    return {split: [int(e["index"]) for e in builder.as_data_source(split=split)] for split in SIZES}


def test_the_splits_are_a_partition_of_the_stated_sizes(indices):
    assert {split: len(of) for split, of in indices.items()} == SIZES
    assert sorted(i for of in indices.values() for i in of) == list(range(1797))


def test_the_split_never_changes(indices):
    assert hashlib.sha256(json.dumps(indices, sort_keys=True).encode()).hexdigest() == CHECKSUM


def test_every_class_has_its_share(indices):
    labels = load_digits().target
    totals = Counter(labels.tolist())
    for split, size in SIZES.items():
        for label, count in Counter(labels[indices[split]].tolist()).items():
            assert abs(count - size * totals[label] / 1797) < 1.5


def test_images_and_labels_are_those_of_scikit_learn(builder, indices):
    data = load_digits()
    examples = list(builder.as_data_source(split="test"))
    assert np.array_equal(np.stack([e["image"] for e in examples]), data.images[indices["test"]])
    assert [int(e["label"]) for e in examples] == data.target[indices["test"]].tolist()


def test_the_images_use_all_of_the_range(digits_dir):
    values = {v for image, _ in digits.Digits(digits_dir).source("test") for v in np.unique(np.asarray(image)).tolist()}
    assert min(values) == 0
    assert max(values) == 255
    assert len(values) == 17


@pytest.mark.full
def test_the_first_images_can_be_all_that_is_trained_on(digits_dir):
    whole, few = digits.Digits(digits_dir), digits.Digits(digits_dir, train=30)
    assert [label for _, label in few.source("train")] == [label for _, label in whole.source("train")[:30]]
    assert len(few.source("test")) == 360
    for count in (0, 1294):
        with pytest.raises(ValueError, match=f"train is a number of images from 1 to 1293, got {count}"):
            digits.Digits(digits_dir, train=count)


def test_two_processes_may_prepare_at_once_and_need_no_tensorflow(tmp_path):
    code = (
        "import sys; from tasks.datasets import digits; "
        f"print(len(digits.Digits({str(tmp_path)!r}).source('train')), 'tensorflow' in sys.modules)"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        out, error = process.communicate(timeout=300)
        assert (process.returncode, out.strip()) == (0, "1293 False"), error
    assert [p.name for p in (tmp_path / "mixer_zoo_digits").iterdir()] == ["1.0.0"]


def test_the_loser_of_a_race_reads_what_the_winner_wrote(tmp_path, monkeypatch):
    real = digits.MixerZooDigits.download_and_prepare

    def overtaken(self, **options):
        real(digits.MixerZooDigits(data_dir=str(tmp_path), file_format="array_record"), **options)
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(digits.MixerZooDigits, "download_and_prepare", overtaken)
    assert len(digits.Digits(str(tmp_path)).source("test")) == 360


def test_a_directory_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"can't write .*file.*: set TFDS_DATA_DIR"):
        digits.Digits(str(tmp_path / "file" / "below"))


def test_hold_out_is_exact_and_leaves_every_class_something():
    labels = [0] * 30 + [1] * 50 + [2] * 3 + [3]
    keys = [str(i) for i in range(len(labels))]
    held = hold_out(keys, labels, 20)
    assert len(held) == 20
    assert Counter(labels[i] for i in held) == {0: 7, 1: 12, 2: 1}  # shares 7.14, 11.90, 0.71, 0.24
    assert hold_out(keys, labels, len(keys)) == sorted(set(hold_out(keys, labels, len(keys))))
    assert {labels[i] for i in set(range(len(labels))) - set(hold_out(keys, labels, len(keys)))} == {0, 1, 2, 3}


def test_hold_out_follows_the_keys_not_the_order():
    labels = [i % 3 for i in range(60)]
    keys = [f"k{i}" for i in range(60)]
    order = np.random.default_rng(0).permutation(60)
    one = {keys[i] for i in hold_out(keys, labels, 13)}
    other = {keys[order[i]] for i in hold_out([keys[i] for i in order], [labels[i] for i in order], 13)}
    assert one == other
