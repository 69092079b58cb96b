"""The scaling benchmark runs, stops at its limit, and fits slopes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import longnet_scaling


def test_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longnet_scaling.run(["--lengths=512,256", f"--output={tmp_path}"])
    report, printed = json.loads((tmp_path / "longnet_scaling.json").read_text()), capsys.readouterr().out
    for form in longnet_scaling.FORMS:
        assert [row["length"] for row in report[form]["rows"]] == [256, 512]
        assert all(row["seconds"] > 0 and row["temporary_bytes"] > 0 for row in report[form]["rows"])
        assert f"{form}: slope of seconds {report[form]['slope_of_seconds']}" in printed


def test_a_form_ends_where_it_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        longnet_scaling,
        "measure",
        lambda mixer, length: {"length": length, "seconds": (length / 100) ** mixer.complexity},
    )
    lengths = [
        row["length"] for row in longnet_scaling.scaling(longnet_scaling.FORMS["dense"], (100, 200, 400, 800), limit=16)
    ]
    assert lengths == [100, 200, 400]
    assert len(longnet_scaling.scaling(longnet_scaling.FORMS["longnet"], (100, 200, 400, 800), limit=16)) == 4


def test_slope() -> None:
    rows = [{"length": float(n), "seconds": 3e-6 * n**1.5} for n in (8192, 16384, 65536)]
    assert longnet_scaling.slope(rows, "seconds") == pytest.approx(1.5)
    assert longnet_scaling.slope(rows[:1], "seconds") is None
