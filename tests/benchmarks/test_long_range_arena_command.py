"""Long Range Arena's command: rows are kept, one mixer that fails does not stop the rest, and the page says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import long_range_arena, worker
from docs import long_range_arena as page
from training import comparison
from training.problems import LONG_RANGE, LONG_RANGE_PAPER


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Jobs given to what stands in place of a process, in which Nystrom attention breaks."""
    jobs: list[dict[str, Any]] = []

    class Here:
        def __init__(self, module: list[str]):
            assert module == ["benchmarks.long_range_arena", "--work"]

        def run(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
            jobs.append(job)
            if job["mixer"] == "nystrom_attention":
                return {"fault": "RuntimeError: it broke"}
            figures = {"figure": 0.5, "test": {"accuracy": 0.5}, "validation": [], "chance": 0.1, "deviation": 0.001}
            cost = {"parameters": 1000, "operations": 10**6, "seconds": 1.0, "step_seconds": 0.01}
            return {**figures, **cost, "features": 64, "hidden": 100, "peak_mib": 700, "steps_per_second": 100.0}

        def end(self) -> None:
            pass

    monkeypatch.setattr(worker, "Worker", Here)
    return jobs


def test_rows_are_kept_drawn_and_told(
    asked: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    run = ["--quick", "--task=listops,pixels", "--mixers=nystrom_attention,attention", f"--output={tmp_path}"]
    long_range_arena.main([*run, "--task=listops"])
    long_range_arena.main(run)
    assert len(asked) == 4, "every row was made once"
    assert "RuntimeError: it broke" in capsys.readouterr().out
    report = json.loads((tmp_path / "long_range_arena_quick.json").read_text())
    assert [row.get("fault") for row in report["rows"]] == ["RuntimeError: it broke", None] * 2
    assert (tmp_path / "long_range_arena_quick.csv").read_text().count("\n") == 5
    assert "pixels" in (tmp_path / "long_range_arena_quick.svg").read_text()
    text = page.section(report, "long_range_arena_quick", "cpu")
    assert "`attention` | 0.500 | 1 | 1,000 | +0.1% | 100.0 | 700 |" in text
    assert "`nystrom_attention` | none: RuntimeError: it broke" in text


def test_the_page_is_that_of_the_results() -> None:
    assert page.PAGE.read_text() == page.page(), "run: python -m docs.long_range_arena"


def test_what_is_asked_for_is_checked() -> None:
    for arguments, message in (
        (["--task=listopz"], "did you mean 'listops'"),
        (["--mixers=atention"], "did you mean 'attention'"),
        (["--quick", "--protocol=paper"], "--quick is a form of the small protocol"),
        (["--path=DIR"], "--path=DIR is for one part of --protocol=paper"),
        (["--steps=0"], "--steps=0: at least 1"),
    ):
        with pytest.raises(SystemExit, match=message):
            long_range_arena.main(arguments)
    small = long_range_arena.wanted(long_range_arena._arguments().parse_args([]))
    assert {job["task"] for job in small} == {"listops", "pixels"}, "the small Pathfinder is left out"
    parsed = long_range_arena._arguments().parse_args(["--protocol=paper", "--task=text", "--path=DIR", "--seeds=3"])
    jobs = long_range_arena.wanted(parsed)
    assert [job["task"] for job in jobs] == ["paper_text"] * len(long_range_arena.DEFAULT)
    assert jobs[0] == {"path": "DIR", "steps": 20_000, "mixer": "attention", "seed": 3} | {
        "task": "paper_text", "setting": comparison.setting("paper_text")
    }  # fmt: skip


def test_models_are_as_large_as_the_one_with_attention() -> None:
    """In the paper's protocol to a thousandth, whose authors ask for at most a tenth."""
    for task in ("listops", "pathfinder", "paper_listops"):
        size = comparison.fitted("linear_attention", task)
        assert abs(size.deviation) < 0.001
    assert comparison.fitted("attention", "paper_listops").features == LONG_RANGE_PAPER["paper_listops"].features == 512
    assert set(LONG_RANGE) == {"listops", "pixels", "pathfinder"}


@pytest.mark.full
def test_a_run_of_the_papers_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config and data, with a model that is smaller."""
    options = {"features": 16, "depth": 1, "num_heads": 2, "head_hidden": 16, "mixer": "linear_attention"}
    monkeypatch.setattr(comparison, "_options", lambda mixer, task: options)
    seen: list[Any] = []
    train = comparison.contest.train

    def short(contest: Any, contestant: Any, seed: int, steps: int) -> Any:
        config = comparison.contest.config_of(contest, contestant, seed, steps)
        seen.append((config.model, config.batch_size, config.task.part, config.model_options.to_dict()))
        few = {"batch_size": 2, "task": {"dataset": {"num_train": 8, "num_validation": 2, "num_test": 2}}}
        fewer = {"schedule": {"name": "constant", "warmup": "0 steps"}, "workers": 0}
        contestant = type(contestant)(**{**vars(contestant), "settings": {**few, **fewer}})
        return train(contest, contestant, seed, steps)

    monkeypatch.setattr(comparison.contest, "train", short)
    row = comparison.run({"task": "paper_listops", "mixer": "linear_attention", "seed": 0, "steps": 2})
    assert seen == [("lra_listops", 32, "listops", {"dropout": 0.1, **options})]
    assert row["chance"] == 0.1
    assert row["peak_mib"] > 100
