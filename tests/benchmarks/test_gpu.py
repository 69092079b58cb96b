"""The script for a GPU, as far as it goes without one: tiny, on a CPU, XLA in the kernels' place; its figures mean nothing and are not kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_problems import attention, problems
from pallas_kernels.dispatch import OPS

WITH_KERNELS = {op.name for op in OPS.values() if "mosaic_gpu" in {i.name for i in op.implementations}}


@pytest.mark.full
def test_dry_run(tmp_path: Path) -> None:
    """Both stages, and that a kernel found wrong is not timed."""
    for stage in ("correct", "time"):
        gpu.main([stage, "--dry", "--output", str(tmp_path), "--minutes", "5", "--workers", "1"])
        if stage == "correct":
            found = json.loads((tmp_path / "correctness.json").read_text())
            assert all(row["right"] for row in found["correctness"]), found
            assert {row["op"] for row in found["correctness"]} == WITH_KERNELS
            next(row for row in found["correctness"] if row.get("problem") == "mamba")["right"] = False
            (tmp_path / "correctness.json").write_text(json.dumps(found))
    files = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert files.keys() == {"ceilings", "correctness", *WITH_KERNELS}
    assert all(content["dry"] for content in files.values())
    assert files["selective_scan"]["selective_scan"] == [{"op": "selective_scan", "problem": "mamba", "wrong": True}]
    for op in WITH_KERNELS - {"selective_scan"}:
        for row in files[op][op]:
            assert {"ours", "xla"} <= row["forward"]["ms"].keys(), row
            assert row["gradient"]["floor_ms"] > 0
            assert row["gradient"]["absent"], "no peer can run here"


@pytest.mark.full
def test_a_row_that_hangs_or_breaks_costs_itself_only() -> None:
    worker = gpu.Worker(True, {})
    assert worker.run({"stage": "correct", "op": "attention", "case": "no such case"}, 60)["fault"].startswith("StopIteration")
    assert worker.run({"stage": "correct", "op": "attention", "case": "plain"}, 0.2) == {"fault": "no answer in time", "right": False}
    assert worker.run({"stage": "correct", "op": "attention", "case": "plain"}, 60)["right"]
    worker.end()


def test_a_dry_run_leaves_no_results_behind() -> None:
    with pytest.raises(SystemExit, match="name a folder"):
        gpu.main(["correct", "--dry"])


def test_every_op_with_kernels_has_problems_and_peers() -> None:
    assert {problem.op for problem in problems(dry=False)} == WITH_KERNELS == gpu.gpu_peers.PEERS.keys() == set(gpu.WORST_FIRST)


def test_the_work_of_a_window_is_counted_pair_by_pair() -> None:
    dense, window = attention("dense", 1, 32, 2, 16), attention("window", 1, 32, 2, 16, causal=True, window=(7, None))
    assert dense.flops == 4 * 2 * 32 * 32 * 16
    assert window.flops == 4 * 2 * sum(min(i + 1, 8) for i in range(32)) * 16
