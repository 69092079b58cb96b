"""The script for a GPU, as far as it goes without one: tiny, on a CPU, XLA in the kernels' place; its figures mean nothing and are not kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_problems import attention, problems
from pallas_kernels.dispatch import OPS


def test_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ROUNDS", 2)
    gpu.main(["--dry", "--output", str(tmp_path), "--minutes", "5"])
    files = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert files.keys() == {"ceilings", "correctness", *OPS}
    assert all(content["dry"] for content in files.values())
    assert all(row.get("right") for row in files["correctness"]["correctness"]), files["correctness"]
    for op in OPS:
        for row in files[op][op]:
            assert {"ours", "xla"} <= row["forward"]["ms"].keys(), row
            assert row["gradient"]["floor_ms"] > 0
            assert row["absent"], "no peer can run here"


def test_a_dry_run_leaves_no_results_behind() -> None:
    with pytest.raises(SystemExit, match="name a folder"):
        gpu.main(["--dry"])


def test_every_op_has_problems_and_peers() -> None:
    assert {problem.op for problem in problems(dry=False)} == OPS.keys() == gpu.gpu_peers.PEERS.keys()


def test_the_work_of_a_window_is_counted_pair_by_pair() -> None:
    dense, window = attention("dense", 1, 32, 2, 16), attention("window", 1, 32, 2, 16, causal=True, window=(7, None))
    assert dense.flops == 4 * 2 * 32 * 32 * 16
    assert window.flops == 4 * 2 * sum(min(i + 1, 8) for i in range(32)) * 16
