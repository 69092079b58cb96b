"""Classification of sequences: what a model is given of texts, symbols and pairs; the user's tables and folders; F1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

import tasks
from tasks.confusion import auroc, f1
from tasks.datasets import sequences

CLASS, SEPARATOR = 257, 258  # after padding and 256 bytes


def bytes_of(text: str) -> list[int]:
    return [byte + 1 for byte in text.encode()]


def example(task: tasks.SequenceClassification, split: str = "train", index: int = 0) -> dict[str, Any]:
    found = task.examples(split).get(index, None)
    return {name: value.tolist() for name, value in found.items()}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """The layout of AAN's files: label, two names, two texts."""
    for split, rows in {"train": 8, "eval": 2, "test": 2}.items():
        lines = [f"{i % 2}.0\tid{i}\tid{i + 1}\ttext {split}{i}\tother{'!' * i}\n" for i in range(rows)]
        (tmp_path / f"new_aan_pairs.{split}.tsv").write_text("".join(lines))
    return tmp_path


def of_pairs(path: Path, **options: Any) -> tasks.SequenceClassification:
    columns = {"label": 0, "text": 3, "text2": 4, "header": False}
    return tasks.create("sequence_classification", dataset={"name": "tsv", "path": str(path), **columns}, **options)


def test_a_joint_pair_is_one_sequence_of_two_types(pairs: Path) -> None:
    task = of_pairs(pairs, length=24)
    assert task.model_options() == {"num_classes": 2, "vocab_size": 259, "types": 2}
    row = example(task, "train", 1)
    a, b = bytes_of("text train1"), bytes_of("other!")
    tokens = [CLASS, *a, SEPARATOR, *b, SEPARATOR]
    assert row["tokens"] == [*tokens, *[0] * (24 - len(tokens))]
    assert row["mask"] == [True] * len(tokens) + [False] * (24 - len(tokens))
    assert row["types"] == [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * (24 - len(tokens))
    assert (row["label"], task.class_names) == (1, ("0", "1"))


@pytest.mark.parametrize(("length", "kept"), [(13, (5, 5)), (16, (7, 6)), (17, (8, 6)), (20, (11, 6)), (9, (3, 3))])
def test_the_longer_text_of_a_joint_pair_is_cut_first(pairs: Path, length: int, kept: tuple[int, int]) -> None:
    row = example(of_pairs(pairs, length=length), "train", 1)
    a, b = bytes_of("text train1")[: kept[0]], bytes_of("other!")[: kept[1]]
    assert row["tokens"][: 3 + sum(kept)] == [CLASS, *a, SEPARATOR, *b, SEPARATOR]


def test_a_dual_pair_is_two_sequences(pairs: Path) -> None:
    task = of_pairs(pairs, length=8, pair="dual")
    assert task.model_options() == {"num_classes": 2, "vocab_size": 257, "head": "dual"}
    row = example(task, "test", 1)
    assert row["tokens"] == bytes_of("text tes")
    assert (row["tokens2"], row["mask2"]) == ([*bytes_of("other!"), 0, 0], [True] * 6 + [False] * 2)


def test_mistakes_with_pairs_are_answered(pairs: Path) -> None:
    task = of_pairs(pairs)
    with pytest.raises(ValueError, match="tsv has pairs, and the second sequence is missing"):
        task.arrays(b"alone")
    single = tasks.create("sequence_classification", dataset={"name": "listops"})
    with pytest.raises(ValueError, match="listops has single sequences: there is no use for a second one"):
        single.arrays(np.zeros(3, np.uint8), np.zeros(3, np.uint8))
    file = pairs / "new_aan_pairs.eval.tsv"
    file.write_text(file.read_text() + "1.0\ta\tb\tonly one\n")
    with pytest.raises(ValueError, match=r"eval.tsv, line 3: column 4 is empty; every line needs it"):
        of_pairs(pairs)


def test_a_single_table_is_split_by_its_texts(tmp_path: Path) -> None:
    file = tmp_path / "reviews.tsv"
    lines = [f"{'good' if i % 2 else 'bad'}\treview {i % 150}\n" for i in range(300)]
    file.write_text("kind\tcomment\n" + "".join(lines))
    options = {"name": "tsv", "path": str(file), "label": "kind"}
    task = tasks.create("sequence_classification", dataset={**options, "text": "comment"}, length=16)
    assert task.class_names == ("bad", "good")
    texts = {
        split: [bytes(task._dataset.source(split)[i][0]) for i in range(len(task.examples(split)))]
        for split in task.splits
    }
    assert sum(map(len, texts.values())) == 300
    assert not set(texts["train"]) & {*texts["test"], *texts["validation"]}
    with pytest.raises(ValueError, match="unknown column 'comments': did you mean 'comment'"):
        sequences.create(**options, text="comments")
    (tmp_path / "test.tsv").write_text("kind\tcomment\nugly\tx\n")
    file.rename(tmp_path / "train.tsv")
    with pytest.raises(ValueError, match=r"test.tsv has the label 'ugly', which .*train.tsv lacks"):
        sequences.create("tsv", path=str(tmp_path), label="kind", text="comment")


def test_a_folder_of_texts(tmp_path: Path) -> None:
    for split, count in (("train", 60), ("test", 3)):
        for name in ("neg", "pos", *(["unsup"] if split == "train" else [])):
            for i in range(count):
                file = tmp_path / split / name / f"{i}.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{name} {i}")
    task = tasks.create("sequence_classification", dataset={"name": "folder", "path": str(tmp_path)}, length=10)
    assert task.report == "left out unsup: not all splits have that class"
    sizes = {split: len(task.examples(split)) for split in task.splits}
    assert sizes["test"] == 6
    assert sizes["train"] + sizes["validation"] == 120
    assert 0 < sizes["validation"] < 20
    assert example(task, "test", 5) == {
        "tokens": [CLASS, *bytes_of("pos 2"), 0, 0, 0, 0], "mask": [True] * 6 + [False] * 4, "label": 1
    }  # fmt: skip


def test_texts_of_tfds(tmp_path: Path) -> None:
    with tfds.testing.mock_data(num_examples=40):
        options = {"name": "tfds", "builder": "imdb_reviews", "data_dir": str(tmp_path)}
        task = tasks.create("sequence_classification", dataset=options, length=12)
        assert task.class_names == ("neg", "pos")
        assert len(task.examples("test")) == 40
        assert example(task)["label"] in (0, 1)
        assert example(task)["tokens"][0] == CLASS


def test_images_are_read_a_row_after_the_other(digits_dir: str) -> None:
    options = {"name": "images", "images": {"name": "digits", "data_dir": digits_dir}}
    task = tasks.create("sequence_classification", dataset=options)
    image, label = task._dataset._dataset.source("test")[4]
    row = example(task, "test", 4)
    assert row == {"tokens": [CLASS, *(np.asarray(image, int).reshape(-1) + 1).tolist()], "label": label}, (
        "no mask: all are full"
    )
    linear = tasks.create("sequence_classification", dataset=options, inputs="linear")
    assert linear.model_options() == {"num_classes": 10, "inputs": "linear", "in_features": 1}
    np.testing.assert_allclose(
        np.asarray(example(linear, "test", 4)["values"])[:, 0], np.asarray(image).reshape(-1) / 127.5 - 1, atol=1e-6
    )
    with pytest.raises(ValueError, match='inputs="linear" is for levels of a quantity; listops has symbols'):
        tasks.create("sequence_classification", dataset="listops", inputs="linear")


def test_a_tokenizer_file_has_special_tokens_of_its_own(pairs: Path, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "text", "train1", "other", "!"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.save(str(tmp_path / "tokenizer.json"))
    task = of_pairs(pairs, length=9, tokenizer=str(tmp_path / "tokenizer.json"))
    assert task.model_options()["vocab_size"] == 9
    assert example(task, "train", 1)["tokens"] == [1, 5, 6, 2, 7, 8, 2, 0, 0]
    assert task.mask_token == 4


def test_figures_of_a_split_against_another_library() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for classes in (2, 4):
        label, predicted = rng.integers(0, classes, (2, 60))
        theirs = metrics.f1_score(label, predicted, average="binary" if classes == 2 else "macro")
        assert f1(label, predicted, classes) == pytest.approx(theirs, abs=1e-12)
    label, score = rng.integers(0, 2, 60), rng.integers(0, 9, 60)
    assert auroc(label, score) == pytest.approx(metrics.roc_auc_score(label, score), abs=1e-12)
    assert np.isnan(auroc(np.ones(3, int), np.arange(3)))


def test_loss_metrics_and_figures(pairs: Path) -> None:
    task = of_pairs(pairs, length=8, label_smoothing=0.2)
    logits = np.array([[2.0, -1.0], [0.5, 0.0], [0.0, 3.0], [1.0, 1.5]], np.float32)
    batch = {"label": jnp.array([0, 1, 1, 0]), "tokens": jnp.zeros((4, 8), jnp.int32), "mask": jnp.ones((4, 8), bool)}
    seen: list[set[str]] = []

    def model(tokens: jax.Array, **known: Any) -> jax.Array:
        seen.append(set(known))
        return jnp.asarray(logits)

    loss, metrics = task.loss(model, batch, jax.random.key(0))
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = np.eye(2)[[0, 1, 1, 0]] * 0.8 + 0.1
    np.testing.assert_allclose(loss, -(targets * logp).sum(-1).mean(), rtol=1e-6)
    assert [float(x) for x in metrics["accuracy"]] == [2, 4]
    pairs_, rows = task.evaluate_rows(model, {**batch, "weight": jnp.array([1.0, 1.0, 1.0, 0.0])})
    np.testing.assert_allclose(pairs_["loss"][0], -(logp[0, 0] + logp[1, 1] + logp[2, 1]), rtol=1e-6)
    kept = {name: np.asarray(value)[:3] for name, value in rows.items()}
    assert task.scores(kept) == {"f1": pytest.approx(2 / 3), "auroc": 1.0}
    assert task.explain(kept)["classes"][1] == {"name": "1", "examples": 2, "accuracy": 0.5}
    assert seen[0] == {"mask"}


def test_options_are_checked() -> None:
    for options, message in (
        ({"dataset": "listopz"}, "unknown set of sequences 'listopz': did you mean 'listops'"),
        ({"pair": "triple"}, "pair \"joint\" or \"dual\"; got 'tokens' and 'triple'"),
        ({"length": 1}, "length=1: 1 special tokens leave no room"),
        ({"tokenizer": "t.json"}, "tokenizer= is for texts; listops has symbols of its own"),
        ({"dataset": {"name": "pathfinder"}, "inputs": "linear", "class_token": True}, "set class_token=False"),
    ):
        with pytest.raises(ValueError, match=message.replace("(", r"\(")):
            tasks.create("sequence_classification", **options)
