"""Pairs, their examples, losses and figures, and BLEU beside the values of sacreBLEU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tasks
from tasks.bleu import bleu
from tasks.datasets import pairs

# Texts, targets, and what sacreBLEU 2.6.0's corpus_bleu(texts, [targets]).score is.
BLEU: dict[str, tuple[list[str], list[str], float]] = {
    "punctuation": (
        ["The cat sat on the mat, 3.5 times -- or 1,000!", 'It\'s a "test" (really).'],
        ["The cat sat on a mat 3.5 times, or 1,000.", 'It is a "test", really.'],
        29.982213893423374,
    ),
    "short": (["a b", "the quick brown fox"], ["a b c", "the quick brown dog"], 53.21972092465657),
    "no four words": (
        ["the cat is here", "a dog ran away"],
        ["the cat was there", "one dog ran off"],
        22.59005009024612,
    ),
    "nothing": (["x y z w", "k"], ["a b c d", "e"], 0.0),
    "same": (["one two three four five"], ["one two three four five"], 100.0),
    "longer": (["one two three four five six seven eight"], ["one two three four"], 34.57207846419409),
    "empty": (["", ""], ["a b", "c"], 0.0),
    "entities": (
        ["Tom &amp; Jerry &quot;met&quot; 5-6 times at 12.30 p.m. ok"],
        ['Tom & Jerry "met" 5-6 times at 12.30 p.m. okay'],
        93.51334836242394,
    ),
    "letters": (
        ["Der Fluß war über 2,5 km lang – wirklich."],
        ["Der Fluß war über 2,5 km lang, wirklich."],
        70.71067811865478,
    ),
}


@pytest.mark.parametrize("case", BLEU)
def test_bleu_is_that_of_sacrebleu(case: str) -> None:
    texts, targets, expected = BLEU[case]
    assert bleu(texts, targets) == pytest.approx(expected, rel=1e-12)


def test_bleu_of_another_number_of_targets() -> None:
    with pytest.raises(ValueError, match="zip"):
        bleu(["a"], [])


def task_of(dataset: Any = "reverse", **options: Any) -> Any:
    return tasks.create(
        "sequence_to_sequence", dataset=dataset, **{"start_token": 0, "write": lambda *given: None, **options}
    )


@pytest.mark.parametrize("name", ["reverse", "sort"])
def test_computed_pairs(name: str) -> None:
    """Of every length, the same whenever they are asked for, in other splits others."""
    task = task_of({"name": name, "length": 6, "symbols": 5, "num_eval": 40})
    assert task.model_options() == {"vocab_size": 7, "end_token": 1}
    sizes = set()
    for index in range(40):
        example = task.examples("train").get(index, np.random.default_rng(index))
        again = task.examples("train").get(index, None)
        assert all(np.array_equal(example[field], again[field]) for field in example)
        size = int(example["source_size"])
        source, target = (example[field][: size - 1].tolist() for field in ("source", "target"))
        assert (source[::-1] if name == "reverse" else sorted(source)) == target
        assert set(source) <= {2, 3, 4, 5, 6}
        for field in ("source", "target"):
            assert example[field].shape == (7,)
            assert example[field][size - 1] == 1
            assert not example[field][size:].any()
        sizes.add(size)
    assert sizes == {2, 3, 4, 5, 6, 7}
    rows = [[task.examples(split).get(i, None)["source"].tolist() for i in range(40)] for split in task.splits]
    assert rows[0] != rows[1] != rows[2] != rows[0]
    assert len(task.examples("test")) == len(task.examples("validation")) == 40
    assert task.describe("test") == "40 pairs"


LINES = [(f"source {i}", f"target {i * i}") for i in range(200)]


def write_file(path: Path, lines: list[tuple[str, str]] = LINES, names: tuple[str, str] = ("source", "target")) -> Path:
    if path.suffix == ".tsv":
        text = "".join(f"{source}\t{target}\r\n" for source, target in lines)
    else:
        text = "\n".join(json.dumps(dict(zip(names, line, strict=True))) for line in lines)
    path.write_text(text)
    return path


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl"])
def test_pairs_of_a_file(tmp_path: Path, suffix: str) -> None:
    """Each in one split, which no other line changes; of a folder as its files say."""
    found = pairs.create("file", path=str(write_file(tmp_path / f"all{suffix}")))
    held = {split: list(found.pairs(split)) for split in found.splits}
    assert sorted(pair for part in held.values() for pair in part) == sorted(
        (source.encode(), target.encode()) for source, target in LINES
    )
    assert len(held["train"]) > 160
    fewer = pairs.create("file", path=str(write_file(tmp_path / f"fewer{suffix}", LINES[:150])))
    assert all(set(fewer.pairs(split)) <= set(held[split]) for split in fewer.splits)
    few = pairs.create("file", path=str(write_file(tmp_path / f"few{suffix}", LINES[:5])))
    assert [len(few.pairs(split)) for split in few.splits] == [3, 1, 1]
    assert "5 pairs are too few" in few.report
    folder = tmp_path / "folder"
    folder.mkdir()
    for split, part in (("train", LINES[:7]), ("validation", LINES[7:9])):
        write_file(folder / f"{split}{suffix}", part)
    given = pairs.create("file", path=str(folder))
    assert given.splits == ("train", "validation")
    assert [len(given.pairs(split)) for split in given.splits] == [7, 2]


def test_columns_and_fields_by_name(tmp_path: Path) -> None:
    lines = [("de", "note", "en"), *((f"eins {i}", "x", f"one {i}") for i in range(9))]
    (tmp_path / "a.tsv").write_text("\n".join("\t".join(line) for line in lines))
    found = pairs.create("file", path=str(tmp_path / "a.tsv"), source="en", target="de")
    assert found.pairs("train")[0] == (b"one 0", b"eins 0")
    write_file(tmp_path / "b.jsonl", LINES[:9], ("q", "a"))
    found = pairs.create("file", path=str(tmp_path / "b.jsonl"), source="q", target="a")
    assert found.pairs("train")[0] == (b"source 0", b"target 0")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "x\ty", "neither .tsv nor .jsonl"),
        ("a.tsv", "a\tb\nc\n", "line 2 of .*a.tsv lacks two columns"),
        ("a.jsonl", '{"source": "a", "target": "b"}\n{', "line 2 of .*a.jsonl is not JSON"),
        ("a.jsonl", '{"source": "a"}', "lacks the texts 'source' and 'target'"),
        ("a.tsv", "a\tb\nc\td\n", "too few pairs: none are left for train"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        pairs.create("file", path=str(tmp_path / name))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are no pairs at"):
        pairs.create("file", path=str(tmp_path / "none.tsv"))
    with pytest.raises(ValueError, match=r"has no file train.tsv or train.jsonl"):
        pairs.create("file", path=str(tmp_path))
    with pytest.raises(ValueError, match="unknown set of pairs 'revers': did you mean 'reverse'"):
        task_of("revers")
    with pytest.raises(ValueError, match="unknown monitor 'bleu'"):
        task_of(monitor="bleu")
    with pytest.raises(ValueError, match="at least 13 here"):
        task_of(source_length=12)
    with pytest.raises(ValueError, match="label_smoothing is from 0"):
        task_of(label_smoothing=1.0)


def numbers(task: Any, batch: dict[str, np.ndarray], logits: np.ndarray, smoothing: float) -> tuple[float, float]:
    """Mean loss and accuracy, one token at a time in float64."""
    losses, right = [], []
    for row, target in enumerate(batch["target"]):
        for place in range(int(batch["target_size"][row])):
            z = logits[row, place].astype(np.float64)
            log_p = z - np.log(np.exp(z - z.max()).sum()) - z.max()
            wanted = np.full(len(z), smoothing / len(z))
            wanted[target[place]] += 1 - smoothing
            losses.append(-(wanted * log_p).sum())
            right.append(z.argmax() == target[place])
    return float(np.mean(losses)), float(np.mean(right))


def test_bytes_of_byt5(tmp_path: Path) -> None:
    """Any text comes back; what is no byte has none."""
    path = write_file(tmp_path / "all.tsv", [("Straße – 5 €", "Weg"), *LINES])
    task = task_of({"name": "file", "path": str(path)}, tokenizer="byt5", source_length=32)
    assert task.model_options() == {"vocab_size": 384, "end_token": 1}
    tokens = task.encode("Straße – 5 €".encode())
    assert tokens.tolist() == [byte + 3 for byte in "Straße – 5 €".encode()]
    assert task.decode([0, *tokens, 300, 1, 70]) == "Straße – 5 €"
    assert task.tokenizer.token_of("[SEP]", "</s>") == 1


def test_losses_and_figures() -> None:
    """The decoder reads the target a token late; filling counts nothing, whatever the model makes of it; a target is
    exact to its end.
    """
    rng = np.random.default_rng(0)
    wrong = np.asarray([0, 0, 3, 0])  # of the third row a token, of the others none

    def write(model: Any, source: jax.Array, mask: jax.Array, length: int) -> jax.Array:
        assert length == 7
        np.testing.assert_array_equal(mask.sum(1), batch["source_size"])
        return jnp.asarray(batch["target"]).at[:, 0].add(wrong) - 5 * ~real

    task = task_of({"name": "reverse", "length": 6, "symbols": 5}, label_smoothing=0.2, write=write)
    examples = [task.examples("train").get(i, None) for i in range(4)]
    batch: Any = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    real = np.arange(7) < batch["target_size"][:, None]
    logits = rng.standard_normal((4, 7, 7)).astype(np.float32)
    read: list[Any] = []

    def model(source: Any, target: Any, source_mask: Any, target_mask: Any) -> jax.Array:
        read[:] = source, target, source_mask, target_mask
        return jnp.where(jnp.asarray(real)[..., None], logits, jnp.nan)

    loss, metrics = task.loss(model, batch, jax.random.key(0))
    expected, accuracy = numbers(task, batch, logits, 0.2)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["accuracy"][0] / metrics["accuracy"][1]) == pytest.approx(accuracy, rel=1e-6)
    np.testing.assert_array_equal(read[1], np.concatenate([np.zeros((4, 1), int), batch["target"][:, :-1]], 1))
    np.testing.assert_array_equal(read[3], real)
    weight = np.asarray([1, 1, 1, 0], np.float32)
    found = task.evaluate(model, {**batch, "weight": weight})
    figures = {name: float(total / count) for name, (total, count) in found.items()}
    first = {name: array[:3] for name, array in batch.items()}
    expected, accuracy = numbers(task, first, logits, 0.0)
    assert figures == {
        "loss": pytest.approx(expected, rel=1e-5),
        "accuracy": pytest.approx(accuracy, rel=1e-6),
        "exact": pytest.approx(2 / 3),
    }


def test_texts(tmp_path: Path) -> None:
    """Bytes end with the byte between documents; longer ones are cut; BLEU is that of the texts written."""
    path = write_file(tmp_path / "all.tsv")
    task = task_of({"name": "file", "path": str(path)}, source_length=6, monitor="bleu")
    assert task.model_options() == {"vocab_size": 256, "end_token": 0}
    example = task.examples("train").get(0, None)
    assert (example["source"].tolist(), int(example["source_size"])) == ([*b"source 0"[:5], 0], 6)
    assert (example["target"].shape, task.decode(example["target"])) == ((128,), "target 0")
    begun = task_of({"name": "file", "path": str(path)}, source_length=6, source_start=9).examples("train").get(0, None)
    assert (begun["source"].tolist(), begun["target"].tolist()) == ([9, *b"sour", 0], example["target"].tolist())
    texts, targets, expected = BLEU["punctuation"]
    rows = {
        name: np.stack([np.pad(np.frombuffer(text.encode(), np.uint8), (0, 60 - len(text))) for text in given])
        for name, given in (("written", texts), ("target", targets))
    }
    assert task.scores(rows) == {"bleu": pytest.approx(expected)}
    assert isinstance(task, tasks.Scores)
    assert not isinstance(task, tasks.Explains)
    assert task_of().scores({}) == {}
