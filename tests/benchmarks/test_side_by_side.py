"""All mixers side by side: costs are those of the programs, rows are kept, and a mixer that takes too long is tried
once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import counted, mixers, worker
from docs import side_by_side


def test_a_cost_is_that_of_the_program() -> None:
    rows = {way: mixers.cost({"mixer": "linear_attention", "length": 64, "way": way}, 2**40) for way in mixers.WAYS}
    expected = counted.count("linear_attention")
    assert rows["forward"]["parameters"] == expected["parameters"]
    assert 2 < rows["training"]["operations"] / rows["forward"]["operations"] < 6
    assert rows["training"]["mib"] > rows["forward"]["mib"] > 4 * expected["parameters"] / 2**20
    assert all(row["milliseconds"] > 0 for row in rows.values())


def test_what_takes_too_much_memory_is_not_run() -> None:
    row = mixers.cost({"mixer": "depthwise_convolution", "length": 64, "way": "forward"}, 1)
    assert row["fault"].startswith("it takes ")
    assert "milliseconds" not in row


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Jobs given to what stands in place of a process: mamba2 takes too long from 1,024 tokens on."""
    jobs: list[dict[str, Any]] = []

    class Here:
        def __init__(self, module: list[str]):
            assert module == ["benchmarks.mixers", "--work"]

        def run(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
            jobs.append(job)
            if "task" in job:
                figures = {
                    "figure": 0.5,
                    "test": {"accuracy": 0.5},
                    "validation": [],
                    "chance": 0.1,
                    "deviation": 0.001,
                }
                cost = {"parameters": 1000, "operations": 10**6, "seconds": 1.0, "step_seconds": 0.01}
                return {**figures, **cost, "features": 64, "hidden": 100}
            if job["mixer"] == "mamba2" and job["length"] >= 1024:
                return {"fault": "no answer in time"}
            return {"parameters": 1000, "operations": 10**9, "mib": 8.0, "milliseconds": 2.0 * job["length"]}

        def end(self) -> None:
            pass

    monkeypatch.setattr(worker, "Worker", Here)
    return jobs


def test_rows_are_kept_and_drawn(
    asked: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    run = ["--quick", "--only=attention,mamba2", "--lengths=1024,256,4096", f"--output={tmp_path}"]
    with pytest.raises(SystemExit, match="16 of 16 rows were not started"):
        mixers.main([*run, "--minutes=-1"])
    mixers.main([*run, "--tasks=none"])
    mixers.main(run)
    capsys.readouterr()
    slow = [job for job in asked if job["mixer"] == "mamba2" and "length" in job]
    assert [job["length"] for job in slow] == [256, 256, 1024, 1024], "4,096 tokens are not tried"
    assert len(asked) == 14, "every row was made once"
    report = json.loads((tmp_path / "mixers_quick.json").read_text())
    assert len(report["rows"]) == report["rows_asked_for"] == 16
    faults = [(row["job"]["length"], row["fault"]) for row in report["rows"] if "fault" in row]
    assert faults == [(1024, "not done after 300 s")] * 2 + [(4096, "not tried: 1,024 tokens were too many")] * 2
    assert (tmp_path / "mixers_quick.csv").read_text().count("\n") == 17
    for name in ("learning", "cost"):
        assert ">attention<" in (tmp_path / f"mixers_quick_{name}.svg").read_text()
    axes = mixers.draw_costs(report["rows"]).axes
    assert {line.get_label(): list(line.get_xdata()) for line in axes[0].get_lines()} == {
        "attention": [256, 1024, 4096],
        "mamba2": [256],
    }
    assert (axes[3].get_title(), axes[3].get_xlabel()) == ("training: memory, MiB", "tokens")
    text = side_by_side.section(report, "mixers_quick")
    assert "16 rows were measured;" in text
    assert "| `mamba2` | 1,000 | 512, 8, 1 | not done after 300 s | not tried: 1,024 tokens were too many |" in text


def test_the_page_is_fresh() -> None:
    assert side_by_side.PAGE.read_text() == side_by_side.page(), "run: python -m docs.side_by_side"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--only=attenion", "unknown mixer 'attenion': did you mean 'attention'"),
        ("--tasks=digit", "unknown task to compare on 'digit': did you mean 'digits'"),
        ("--lengths=far", "--lengths=far: whole numbers separated by commas"),
    ],
)
def test_unknown_names_list_near_ones(argument: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        mixers.main([argument, f"--output={tmp_path}"])


@pytest.mark.full
def test_a_process_makes_rows(tmp_path: Path) -> None:
    """Those of the real thing: a cost, one that the process breaks at, and another after it."""
    process = worker.Worker(["benchmarks.mixers", "--work"])
    job = {"mixer": "depthwise_convolution", "length": 64, "way": "forward"}
    try:
        assert process.run(job, 120)["milliseconds"] > 0
        assert process.run({**job, "mixer": "none"}, 120)["fault"].startswith("ValueError: unknown mixer 'none'")
        assert process.run(job, 120)["milliseconds"] > 0
        assert process.run({**job, "length": 4096}, 0.0) == {"fault": "no answer in time"}
    finally:
        process.end()
