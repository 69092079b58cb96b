"""The benchmarks of start-up and of convolutions keep rows measured before, and measure what their docstrings say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from benchmarks import convolutions, startup

COMMITS = {"commit": "1234567", "baseline_commit": "7654321"}
SIDES = {"ours": startup.HOME, "baseline": startup.HOME, "peer": startup.HOME}


def test_a_run_that_is_cut_short_keeps_its_sides_and_earlier_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"ours": 0.5, "baseline": 2.0, "peer": 1.0}

    def measured(side: str, name: str, *_: Any) -> dict[str, Any]:
        if (name, side) == ("vit_small_patch16_224", "peer"):
            raise KeyboardInterrupt
        return {"create": {"cpu": seconds[side], "wall": 3.0}}

    monkeypatch.setattr(startup, "measured", measured)
    output = tmp_path / "startup.json"
    output.write_text(json.dumps({"rows": {"earlier": {}}}))
    with pytest.raises(KeyboardInterrupt):
        startup.run(["maxvit_tiny", "biformer_tiny", "vit_small_patch16_224", "never"], SIDES, COMMITS, 1.0, output)
    rows = json.loads(output.read_text())["rows"]
    assert list(rows) == ["earlier", "maxvit_tiny", "biformer_tiny", "vit_small_patch16_224"]
    assert "peer" not in rows["biformer_tiny"], "no library has it"
    assert rows["maxvit_tiny"]["times_faster_than_baseline"] == {"create": 4.0}
    assert rows["maxvit_tiny"]["times_faster_than_peer"] == {"create": 2.0}
    assert rows["vit_small_patch16_224"].keys() == {*COMMITS, "ours", "baseline", "times_faster_than_baseline"}


def test_what_a_process_measured_before_it_ended_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = 'import json, sys, time; print(json.dumps({"import": {"cpu": 1.0, "wall": 1.0}}), flush=True); '
    monkeypatch.setattr(startup, "__file__", str(tmp_path / "child.py"))
    for then, reason in (("time.sleep(60)", "not done after 4 s"), ("raise ValueError('why')", "ValueError: why")):
        (tmp_path / "child.py").write_text(first + then)
        row = startup.measured("ours", "a_model", tmp_path, 4.0, "")
        assert row == {"import": {"cpu": 1.0, "wall": 1.0}, "stopped": reason}


@pytest.mark.full
def test_a_model_is_measured_in_processes_of_its_own(tmp_path: Path) -> None:
    output = tmp_path / "startup.json"
    startup.main(["--only=mamba_nano", f"--output={output}"])
    row = json.loads(output.read_text())["rows"]["mamba_nano"]
    assert row["ours"].keys() == set(startup.STAGES)
    assert all(found["cpu"] > 0 for found in row["ours"].values())


@pytest.mark.full
def test_convolutions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forms agree with ``nnx.Conv`` (it raises where they don't), and what is above the limit is left out."""
    monkeypatch.setattr(convolutions, "SIDE", 6)
    output = tmp_path / "convolutions.json"
    try:
        convolutions.main(["--sizes=3,5", "--limit=0", f"--output={output}"])
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    for sizes in json.loads(output.read_text())["rows"].values():
        assert {"chosen", "taps", "fft", "library", "reference", convolutions.PEER} < sizes["3"].keys()
        assert sizes["3"]["taps"]["run_ms"] > 0
        assert sizes["5"]["fft"]["stopped"].startswith("compiled for")
