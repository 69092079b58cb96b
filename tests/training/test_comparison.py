"""Mixers side by side: the sizes are equal, rows are kept, and what fails says so."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import layers
import mixer_zoo
import tasks
import zoo
from tests.tiers import tiered
from training import comparison
from training.comparison import fitted
from training.problems import PROBLEMS
from training.standings import draw

QUICK = {"attention", "mamba2", "rwkv7", "neighborhood", "titans_mac"}


@pytest.mark.parametrize("task", tiered(PROBLEMS, lambda task: task != "bytes"))
def test_the_backbone_has_what_the_task_specifies(task: str) -> None:
    on = PROBLEMS[task]
    options = dict(on.task)
    name = options.pop("name")
    needs = {"preprocess": zoo.preprocess(on.model)} if "preprocess" in getattr(tasks.lookup(name), "needs", ()) else {}
    made = tasks.create(name, **options, **needs)
    assert (made.monitor, made.higher_is_better) == (on.figure, on.higher)
    assert {option: on.options.get(option, value) for option, value in made.model_options().items()} == (
        made.model_options()
    )
    example = made.examples("train").get(0, None)
    assert on.input_shape == example["image" if "image" in example else "tokens"].shape


@pytest.mark.parametrize("mixer", tiered(layers.list_mixers(), QUICK.__contains__))
def test_sizes_are_equal_or_the_mixer_is_refused(mixer: str) -> None:
    cls = layers.mixer_class(mixer)
    if mixer == "linformer_attention":  # its matrices over time do not get smaller with the width
        with pytest.raises(ValueError, match="526,090 parameters however narrow it is, and the one with"):
            fitted(mixer, "digits")
        return
    assert abs(fitted(mixer, "digits").deviation) < 0.02
    if cls.supports_causal:
        assert abs(fitted(mixer, "recall").deviation) < 0.02
    else:
        with pytest.raises(ValueError, match=r"bidirectional only|grid"):
            fitted(mixer, "recall")
        assert "refused" in comparison.run({"task": "recall", "mixer": mixer, "seed": 0, "steps": 1})


def test_a_mixer_that_is_large_by_itself_makes_the_model_narrower() -> None:
    plain, large = fitted("attention", "digits"), fitted("titans_mac", "digits")
    assert (plain.features, plain.hidden, plain.deviation) == (64, 256, 0.0)
    assert large.features < plain.features


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["mixer-zoo", "compare", *arguments])
    mixer_zoo.main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attenion", "--task=recall"], "unknown mixer 'attenion': did you mean 'attention'"),
        (["attention", "--task=recalls"], "unknown task to compare on 'recalls': did you mean 'recall'"),
        (["biformer_tiny", "--task=digits"], "biformer_tiny is a model, and this compares mixers"),
        (["attention", "bigbird", "--task=recall"], "bidirectional only"),
        (["attention", "--task=recall", "--seeds=a"], "--seeds=a: whole numbers separated by commas"),
        (["attention", "--task=recall", "--steps=0"], "--steps=0: at least 1"),
    ],
)
def test_what_can_not_be_compared_is_a_message(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def train(*_: Any) -> None:
        raise AssertionError("nothing is trained")

    monkeypatch.setattr(comparison.contest, "train", train)
    with pytest.raises(SystemExit, match=message):
        call(monkeypatch, *arguments, f"--output={tmp_path}")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Runs in place of training: linear attention fails, attention's accuracy is 0.9 and less with each seed."""
    made: list[tuple[str, int]] = []

    def train(contest: Any, contestant: Any, seed: int, steps: int) -> dict[str, Any]:
        made.append((contestant.label, seed))
        if contestant.label == "linear_attention":
            raise RuntimeError("out of memory")
        accuracy = {"attention": 0.9, "mamba2": 0.5}[contestant.label] - 0.01 * seed
        figures = {"test": {"accuracy": accuracy, "loss": 1.0}, "validation": []}
        return {"steps": steps, "chance": 0.125, "seconds": 2.0, "step_seconds": 0.01, "peak_mib": 300, **figures}

    monkeypatch.setattr(comparison.contest, "train", train)
    return made


def test_compare(
    trained: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run cut short goes on; the table, the CSV file and the picture have every mixer, the best first."""
    pytest.importorskip("matplotlib")
    call(monkeypatch, "mamba2", "--task=recall", "--seeds=0", f"--output={tmp_path}", "--quiet")
    assert capsys.readouterr().err == ""
    call(monkeypatch, "mamba2", "attention", "--task=recall", f"--output={tmp_path}")
    printed = capsys.readouterr()
    assert trained == [
        ("mamba2", 0),
        ("attention", 0),
        ("mamba2", 1),
        ("attention", 1),
        ("mamba2", 2),
        ("attention", 2),
    ]
    assert "1 of 6 rows are in" in printed.err
    assert "6 of 6 rows" in printed.err
    assert " left" in printed.err
    head, first, second = printed.out.splitlines()
    assert head.split()[0] == "mixer"
    assert first.startswith("attention  0.890 (0.880 to 0.900)  3")
    assert second.startswith("mamba2     0.490 (0.480 to 0.500)  3")
    with (tmp_path / "recall.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {(line["mixer"], line["seed"], line["test_accuracy"]) for line in lines} >= {("attention", "1", "0.89")}
    assert (tmp_path / "recall.png").stat().st_size > 1000
    rows = json.loads((tmp_path / "recall.json").read_text())["rows"]
    (axes,) = draw(rows, ["recall"]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["attention", "mamba2"]
    assert axes.get_xlabel() == "accuracy, more is better"
    assert [0.9, 0.88] not in [list(line.get_xdata()) for line in axes.get_lines()]
    assert [0.88, 0.9] in [list(line.get_xdata()) for line in axes.get_lines()]
    assert [0.125, 0.125] in [list(line.get_xdata()) for line in axes.get_lines()], "chance"


def test_a_mixer_that_fails_is_a_row_and_the_command_ends_with_1(
    trained: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"linear_attention failed; the rows of .*recall\.json say why"):
        call(
            monkeypatch,
            "linear_attention",
            "attention",
            "--task=recall",
            "--seeds=0",
            f"--output={tmp_path}",
            "--quiet",
        )
    assert [mixer for mixer, _ in trained] == ["linear_attention", "attention"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("attention         0.900")
    assert "none: RuntimeError: out of memory" in lines[2]


@pytest.mark.full
@pytest.mark.parametrize("task", ["bytes", "digits"])  # docs/how_to/compare.md runs one with tokens of a small task
def test_a_run(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on = PROBLEMS[task]
    if task == "bytes":  # of one file, not of the whole standard library
        on = dataclasses.replace(on, task={**on.task, "dataset": {"name": "files", "path": __file__}})
        monkeypatch.setitem(PROBLEMS, task, on)
    row = comparison.run({"task": task, "mixer": "linear_attention", "seed": 0, "steps": 2})
    assert row["figure"] == row["test"][on.figure]
    assert row["operations"] > 0
    assert row["step_seconds"] > 0
    size = fitted("linear_attention", task)
    assert (row["parameters"], row["features"], row["hidden"]) == (size.parameters, size.features, size.hidden)
