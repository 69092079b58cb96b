"""Language modeling: the embedded text, the user's files, TFDS sets; windows cover a split exactly; figures;
tokenizers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

import tasks
import tokenization
from tasks.datasets import stdlib_text, texts
from tasks.datasets.split import SPLITS, split_of
from tasks.datasets.stdlib_text import modules, source_of
from tasks.datasets.text_files import TextFiles
from tasks.language_modeling import LanguageModeling, Stream, Windows
from tasks.packing import pack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "text"
    (root / "deep").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for number in range(60):
        (root / "deep" / f"{number}.txt").write_text(f"file {number} " * (number + 1))
    (root / ".hidden" / "secret.txt").write_text("secret")
    (root / "image.png").write_bytes(b"\x89PNG\x00\xff")
    (root / "empty.txt").write_text("")
    return root


def task_on(path: Path, **options: Any) -> LanguageModeling:
    return tasks.create("text", dataset={"name": "files", "path": str(path)}, **options)


def covered(task: LanguageModeling, split: str) -> list[int]:
    """All predictions of the evaluation form, in order."""
    found: list[int] = []
    examples = task.examples(split)
    for index in range(len(examples)):
        example = examples.get(index, None)
        found += example["targets"][example["real"] > 0].tolist()
    return found


@pytest.mark.parametrize("length", [7, 64, 100_000])
def test_evaluation_covers_exactly_the_split(folder: Path, length: int) -> None:
    task = task_on(folder, sequence_length=length)
    texts_of: dict[str, list[str]] = {split: [] for split in task.splits}
    for path in sorted(folder.rglob("*.txt"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.stat().st_size and ".hidden" not in path.parts:
            texts_of[split_of(path.relative_to(folder).as_posix())].append(path.read_text())
    for split, documents in texts_of.items():
        assert bytes(covered(task, split)) == b"".join(text.encode() + b"\0" for text in documents)
        sizes = [task.examples(split).get(i, None)["bytes"] for i in range(len(task.examples(split)))]
        assert float(np.sum(sizes)) == pytest.approx(sum(len(text) + 1 for text in documents), rel=1e-6)
    assert "image.png" in task.report
    assert task.examples("test").get(0, None)["tokens"][0] == 0


def test_training_windows_shift_and_stay_inside() -> None:
    windows = Windows(Stream(np.arange(1, 96, dtype=np.uint8), 95), 10, 0)
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(200):
        for index in range(len(windows)):
            example = windows.get(index, rng)
            tokens = example["tokens"]
            assert example["real"].all()
            np.testing.assert_array_equal(np.diff(tokens), 1)
            np.testing.assert_array_equal(example["targets"], tokens + 1)
            if index == 3:
                starts.add(int(tokens[0]))
    assert starts == set(range(31, 41))
    short = Windows(Stream(np.asarray([0, 5, 6, 0], np.uint8), 3), 10, 0)
    example = short.get(0, rng)
    assert example["real"].sum() == 3
    assert example["tokens"].tolist() == [0, 5, 6] + [0] * 7
    assert example["targets"].tolist() == [5, 6] + [0] * 8


def test_figures(folder: Path) -> None:
    task = task_on(folder, sequence_length=50)
    examples = task.examples("validation")
    rows = [examples.get(i, None) for i in (0, len(examples) - 1, 0)]
    batch = {key: jnp.asarray(np.stack([row[key] for row in rows])) for key in rows[0]} | {
        "weight": jnp.asarray([1.0, 1, 0])
    }
    count = float(sum(row["real"].sum() for row in rows[:2]))

    def uniform(tokens: jax.Array) -> jax.Array:
        return jnp.zeros((*tokens.shape, 256))

    pairs = task.evaluate(uniform, batch)
    assert float(pairs["loss"][1]) == count
    figures = {name: float(total / number) for name, (total, number) in pairs.items()}
    assert figures["bits_per_byte"] == pytest.approx(8, rel=1e-6)
    assert task.derived(figures)["perplexity"] == pytest.approx(256, rel=1e-5)
    loss, pairs = task.loss(uniform, batch, jax.random.key(0))
    assert float(loss) == pytest.approx(np.log(256), rel=1e-6)
    assert float(pairs["loss"][1]) == count + rows[2]["real"].sum()

    def likely(tokens: jax.Array) -> jax.Array:  # the space, always
        return jnp.log(jnp.where(jnp.arange(256) == 32, 0.5, 0.5 / 255)) * jnp.ones((*tokens.shape, 1))

    spaces = sum(int(((row["targets"] == 32) * row["real"]).sum()) for row in rows[:2])
    pairs = task.evaluate(likely, batch)
    assert float(pairs["accuracy"][0]) == spaces
    assert float(pairs["loss"][0]) == pytest.approx(spaces * np.log(2) + (count - spaces) * np.log(510), rel=1e-5)


def test_the_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "lib"
    names = [f"package{i % 7}/module{i}.py" for i in range(300)] + [
        "test/test_it.py",
        "_sysconfigdata__linux.py",
        "site-packages/other.py",
        "json/tests/a.py",
    ]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(f"# {name}\r\nx = 1\r\n".encode())
    monkeypatch.setattr(stdlib_text.sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    assert [path.as_posix() for path in modules(root)] == sorted(names[:300])
    assert source_of(root / names[0]) == f"# {names[0]}\nx = 1\n".encode()
    dataset = texts.create("stdlib", data_dir=str(tmp_path / "tfds"))
    found = {
        split: [document.decode().partition("\n")[0][2:] for document in dataset.documents(split)]
        for split in dataset.splits
    }
    assert found == {split: [name for name in sorted(names[:300]) if split_of(name) == split] for split in SPLITS}
    assert sorted(name for split in found.values() for name in split) == sorted(names[:300])
    monkeypatch.setattr(stdlib_text.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "nothing")})
    assert texts.create("stdlib", data_dir=str(tmp_path / "tfds")).documents("test")  # prepared once, read ever after
    with pytest.raises(ValueError, match="no source of its standard library"):
        texts.create("stdlib", data_dir=str(tmp_path / "other"))


def test_the_split_of_a_name_is_fixed() -> None:
    """A change here would leak test text into training between versions."""
    held = {
        "test": ["chunk.py", "copyreg.py", "email/__init__.py"],
        "validation": ["bz2.py", "calendar.py", "enum.py"],
        "train": ["json/decoder.py", "ast.py"],
    }
    assert all(split_of(name) == split for split, names in held.items() for name in names)
    share = [split_of(str(i)) for i in range(4000)]
    for split in ("test", "validation"):
        assert abs(share.count(split) / 4000 - 0.05) < 4 * (0.05 * 0.95 / 4000) ** 0.5


def test_a_single_file_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("0123456789" * 100)
    task = task_on(path, sequence_length=16)
    lengths = {split: len(covered(task, split)) - 1 for split in task.splits}
    assert lengths == {"train": 900, "validation": 50, "test": 50}
    assert "too few" in task.report


def test_a_text_is_cut_between_characters_and_without_its_byte_order_mark(tmp_path: Path) -> None:
    for size in range(60, 100):
        text = ("é猫" * size)[: size + 1]
        (tmp_path / "a.txt").write_text(text, encoding="utf-8-sig")
        data = TextFiles(str(tmp_path))
        parts = [data.documents(split)[0] for split in data.splits]
        assert "".join(part.decode() for part in parts) == text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "nothing", "there is no text at"),
        (
            lambda root: (root / "x.bin").write_bytes(b"\xff\xfe\x00") and root,
            "no UTF-8 text at .* 1 files are something else",
        ),
        (lambda root: root, "no UTF-8 text at"),
    ],
)
def test_bad_paths(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_on(make(tmp_path))


def test_misspelt_options() -> None:
    with pytest.raises(ValueError, match="unknown text set 'stdlb': did you mean 'stdlib'"):
        tasks.create("text", dataset="stdlb")
    with pytest.raises(ValueError, match="needs path="):
        tasks.create("text", dataset="files")
    with pytest.raises(ValueError, match="sequence_length is at least 1"):
        tasks.create("text", sequence_length=0)


class MixerZooTestText(tfds.core.GeneratorBasedBuilder):
    """A text set with no split but train."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"title": tfds.features.Text(), "body": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        for i in range(200):
            yield i, {"title": str(i), "body": f"body {i}"}


def test_a_prepared_set_of_tfds(tmp_path: Path) -> None:
    MixerZooTestText(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    dataset = {"name": "tfds", "builder": "mixer_zoo_test_text", "data_dir": str(tmp_path)}
    with pytest.raises(ValueError, match="2 texts: title, body: name one with feature="):
        tasks.create("text", dataset=dataset)
    task = tasks.create("text", dataset={**dataset, "feature": "body"}, sequence_length=8)
    documents = [bytes(covered(task, split)).decode().split("\0")[:-1] for split in task.splits]
    assert sorted(document for split in documents for document in split) == sorted(f"body {i}" for i in range(200))
    assert all(documents)
    again = tasks.create("text", dataset={**dataset, "feature": "body"}, sequence_length=8)  # from the stored tokens
    assert [bytes(covered(again, split)).decode().split("\0")[:-1] for split in again.splits] == documents
    assert again.examples("train")._stream.num_bytes == sum(len(text) + 1 for text in documents[0])
    assert len(list(tmp_path.rglob("*.tokens"))) == 3
    with pytest.raises(ValueError, match="unknown TFDS set"):
        tasks.create("text", dataset={**dataset, "builder": "mixer_zoo_test_texts"})


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    words = {"<|endoftext|>": 0, "file": 1, "[UNK]": 2, **{str(i): 3 + i for i in range(300)}}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


def test_a_tokenizer_file(folder: Path, tokenizer_file: Path) -> None:
    pytest.importorskip("tokenizers")
    task = task_on(folder, tokenizer=str(tokenizer_file), sequence_length=10)
    assert task.model_options() == {"vocab_size": 303}
    assert task.decode(task.tokenizer.encode(b"file 12 nonsense")) == "file 12 [UNK]"
    predictions = covered(task, "test")
    assert set(predictions) <= {0, 1, *range(3, 63)}
    size = sum(float(task.examples("test").get(i, None)["bytes"]) for i in range(len(task.examples("test"))))
    assert size == pytest.approx(len(covered(task_on(folder), "test")), rel=1e-6), (
        "bits per byte are of the same bytes for every tokenizer"
    )
    with pytest.raises(ValueError, match="none of the tokens <end>"):
        task_on(folder, tokenizer=str(tokenizer_file), separator="<end>")
    with pytest.raises(ValueError, match="there is no tokenizer file"):
        task_on(folder, tokenizer=str(folder / "none.json"))
    (folder / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        task_on(folder, tokenizer=str(folder / "bad.json"))


def test_a_tokenizer_file_cuts_no_document_and_reads_no_special_token(folder: Path, tokenizer_file: Path) -> None:
    pytest.importorskip("tokenizers")
    content = json.loads(tokenizer_file.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = [{"id": 0, "content": "<|endoftext|>", **flags}]
    tokenizer_file.write_text(json.dumps(content))
    plain = tokenization.create(str(tokenizer_file))
    content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 16},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 2,
        "pad_type_id": 0,
        "pad_token": "[UNK]",
    }
    limited_file = tokenizer_file.with_name("limited.json")
    limited_file.write_text(json.dumps(content))
    limited = tokenization.create(str(limited_file))
    for text in (b"file 12", b"file 1 2 3 " * 20):
        assert limited.encode(text).tolist() == plain.encode(text).tolist()
    assert plain.report == ""
    task = task_on(folder, tokenizer=str(limited_file))
    assert task.report.endswith(
        f"truncation to 8 tokens and padding of {limited_file} switched off: documents are encoded whole"
    )

    spelled = b"file <|endoftext|> 7"
    assert 0 not in plain.encode(spelled)
    asked = tokenization.create(str(tokenizer_file), special_tokens=True)
    assert asked.encode(spelled).tolist() == [1, 0, 10]
    assert plain.separator == asked.separator == 0
    before = hashlib.sha256(tokenizer_file.read_bytes()).hexdigest()[:16]  # the key when files' own limits still held
    assert len({plain.key, asked.key, before}) == 3


def test_ties_are_not_right(folder: Path) -> None:
    """A head of zeros guesses: of uniform targets it gets one in as many as there are tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (64, 257)).astype(np.int32)
    batch = {
        "tokens": tokens[:, :-1], "targets": tokens[:, 1:], "real": np.ones((64, 256), np.float32),
        "bytes": np.full(64, 256, np.float32),
        "weight": np.ones(64, np.float32),
    }  # fmt: skip
    metrics = task_on(folder).evaluate(lambda tokens: jnp.zeros((*tokens.shape, 256)), batch)
    right, count = metrics["accuracy"]
    assert float(right / count) == np.mean(tokens[:, 1:] == 0)
    assert float(right / count) == pytest.approx(1 / 256, rel=0.2)


def test_without_the_tokenizers_package(folder: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match="pip install tokenizers"):
        task_on(folder, tokenizer=str(tokenizer_file))


def test_sample_prompt(folder: Path) -> None:
    task = task_on(folder, prompt="def main(")
    assert task.sample_prompt() == [0, *b"def main("]
    assert task.decode(task.sample_prompt()[1:]) == "def main("
    own = task_on(folder).sample_prompt()
    assert own[0] == 0
    assert task.decode(own[1:]).startswith("file ")


def test_streamed_text_holds_back_unfinished_characters() -> None:
    text = "naïve 世界 x"
    pieces = [[byte] for byte in text.encode()]
    parts = list(tokenization.streamed(tokenization.Bytes(), [*pieces, [-1]]))
    assert "".join(parts) == text
    assert len(parts) == len(text)
    assert "".join(tokenization.streamed(tokenization.Bytes(), [[0xE4, 0xB8]])) == "\ufffd"


def documents_of(folder: Path, split: str) -> list[bytes]:
    """The documents of a split, each between its separators."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.txt"))
    return [
        b"\0" + (folder / name).read_bytes() + b"\0"
        for name in names
        if split_of(name) == split and (folder / name).stat().st_size and name[0] != "."
    ]


@pytest.mark.parametrize(("length", "multiple"), [(1000, 1), (64, 16), (7, 1)])
def test_packed_rows_hold_whole_documents_exactly_once(folder: Path, length: int, multiple: int) -> None:
    task = task_on(folder, sequence_length=length, packing=True)
    task.align(multiple)
    rows = task.examples("train")
    found: list[bytes] = []
    for index in range(len(rows)):
        row = rows.get(index, np.random.default_rng(0))
        jax.tree.map(np.testing.assert_array_equal, row, rows.get(index, None))
        ids, real = row["segment_ids"], row["real"] > 0
        assert ids.dtype == np.int32
        assert ids[0] == 0
        assert set(np.diff(ids)) <= {0, 1}
        for number in range(ids[-1] + 1):
            (own,) = np.nonzero(ids == number)
            size = int(real[own].sum())
            assert own[0] % multiple == 0
            assert real[own][:size].all()
            assert size > 0
            tokens, targets = row["tokens"][own][:size], row["targets"][own][:size]
            np.testing.assert_array_equal(tokens[1:], targets[:-1])
            found.append(bytes([*tokens.tolist(), targets[-1]]))
        assert float(row["bytes"]) == real.sum()  # these tokens are bytes
    whole = documents_of(folder, "train")
    pieces = [text[i : i + length + 1] for text in whole for i in range(0, len(text) - 1, length)]
    assert sorted(found) == sorted(pieces), "a document that fits is whole, a longer one is cut as into windows"
    assert f"{len(whole)} documents" in task.describe("train")
    if length == 1000:
        assert len(rows) <= 1.1 * sum(map(len, whole)) / length + 1


def test_rows_are_filled_by_best_fit() -> None:
    pieces = pack(np.cumsum([0, 6, 3, 25, 4, 7, 1, 2]), 10)
    rows = [pieces.size[a:b].tolist() for a, b in itertools.pairwise(pieces.first)]
    assert sorted(map(sorted, rows)) == sorted([[10], [10], [3, 7], [4, 6], [1, 2, 5]])
    assert all((np.diff(pieces.start[a:b]) > 0).all() for a, b in itertools.pairwise(pieces.first))


def test_packed_documents_are_predicted_as_if_alone(folder: Path) -> None:
    """By a model that honors segments: the sums of the loss over the split are those of each document by itself."""
    table = jnp.asarray(np.random.default_rng(0).standard_normal((256, 256)), jnp.float32)

    def model(tokens: jax.Array, segment_ids: jax.Array) -> jax.Array:
        earlier = jnp.tril(segment_ids[:, :, None] == segment_ids[:, None])
        return jnp.einsum("bqk,bkv->bqv", earlier, table[tokens]) / earlier.sum(2, keepdims=True)

    task = task_on(folder, sequence_length=800, packing=True)
    rows = task.examples("test")
    stacked = [rows.get(i, None) for i in range(len(rows))]
    batch = {key: jnp.asarray(np.stack([row[key] for row in stacked])) for key in stacked[0]}
    total, count = task.evaluate(model, batch | {"weight": jnp.ones(len(rows))})["loss"]
    whole = documents_of(folder, "test")
    assert len(whole) > len(rows)
    assert float(count) == sum(len(text) - 1 for text in whole)
    alone = 0.0
    for text in whole:
        tokens = np.frombuffer(text, np.uint8)
        logits = np.cumsum(np.asarray(table, np.float64)[tokens[:-1]], 0) / np.arange(1, len(text))[:, None]
        alone += float((np.log(np.exp(logits).sum(1)) - logits[np.arange(len(text) - 1), tokens[1:]]).sum())
    assert float(total) == pytest.approx(alone, rel=1e-5)


def test_documents_begin_where_rows_can_be_cut(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"begin at multiples of 48 tokens .* must divide sequence_length=64: take 48"):
        task_on(folder, sequence_length=64, packing=True).align(48)
    task_on(folder, sequence_length=64).align(48)  # windows hold no documents to align
