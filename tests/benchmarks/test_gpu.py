"""The GPU benchmark as far as it runs without a GPU: tiny inputs on a CPU, XLA in place of the kernels; its figures
mean nothing and are not kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_stages
from benchmarks.gpu_problems import attention, neighborhood, problems
from pallas_kernels.dispatch import OPS

WITH_KERNELS = {op.name for op in OPS.values() if "mosaic_gpu" in {i.name for i in op.implementations}}


class Here:
    """In place of a process."""

    def __init__(self, dry: bool, environment: dict[str, str]):
        self.dry = dry

    def run(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        return gpu_stages.done(job, self.dry)

    def end(self) -> None:
        pass


@pytest.mark.full
def test_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are right, a kernel found wrong is not timed, and rows of other problems stay in the files."""
    monkeypatch.setattr(gpu_stages, "Worker", Here)
    monkeypatch.setattr(gpu_stages, "ROUNDS", 1)
    run = (
        "--dry",
        "--output",
        str(tmp_path),
        "--workers",
        "1",
        "--only",
        "selective_scan/mamba,linear_attention/retention",
    )
    gpu.main(["correct", *run])
    found = json.loads((tmp_path / "correctness.json").read_text())
    assert [(row["problem"], row["right"]) for row in found["correctness"]] == [("retention", True), ("mamba", True)]
    found["correctness"][1]["right"] = False
    (tmp_path / "correctness.json").write_text(json.dumps(found))
    earlier = {"op": "linear_attention", "problem": "earlier"}
    (tmp_path / "linear_attention.json").write_text(json.dumps({"linear_attention": [earlier]}))
    gpu.main(["time", *run])
    files = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert files.keys() == {"ceilings", "correctness", "linear_attention", "selective_scan"}
    assert all(content["dry"] for content in files.values())
    assert files["selective_scan"]["selective_scan"] == [{"op": "selective_scan", "problem": "mamba", "wrong": True}]
    before, row = files["linear_attention"]["linear_attention"]
    assert before == earlier
    assert {"ours", "xla"} == row["forward"]["ms"].keys(), row
    assert row["gradient"]["floor_ms"] > 0
    assert row["gradient"]["absent"].keys() == {"fla"}, "no peer can run here"


@pytest.mark.full
def test_a_row_that_hangs_or_breaks_costs_itself_only() -> None:
    worker, broken = gpu_stages.Worker(True, {}), {"stage": "correct", "op": "attention", "case": "no such case"}
    assert worker.run(broken, 0.2) == {"fault": "no answer in time", "right": False}
    assert worker.run(broken, 60)["fault"].startswith("StopIteration")
    assert worker.process is None, "what broke may have broken the device's context"


def test_what_tunes_itself_for_long_is_compiled_first_and_both_ways_by_one_process() -> None:
    jobs: list[gpu_stages.Job] = [
        {"op": op, "problem": "p", "way": way} for op in ("attention", "delta_rule") for way in ("forward", "gradient")
    ]
    first, *others = gpu_stages.preparations(jobs)
    assert (first["op"], first["contestants"], first["ways"], first["patient"]) == (
        "delta_rule",
        ["fla"],
        ["forward", "gradient"],
        True,
    )
    assert [(job["op"], job["ways"]) for job in others] == [(job["op"], [job["way"]]) for job in jobs]
    assert not any(job["patient"] or "fla" in job["contestants"] for job in others)


def test_a_dry_run_leaves_no_results_behind() -> None:
    with pytest.raises(SystemExit, match="name a folder"):
        gpu.main(["correct", "--dry"])


def test_every_op_with_kernels_has_problems_and_peers() -> None:
    assert (
        {problem.op for problem in problems(dry=False)}
        == WITH_KERNELS
        == gpu_stages.gpu_peers.PEERS.keys()
        == set(gpu_stages.WORST_FIRST)
    )


def test_the_work_of_a_window_is_counted_pair_by_pair() -> None:
    dense, window = attention("dense", 1, 32, 2, 16), attention("window", 1, 32, 2, 16, causal=True, window=(7, None))
    assert dense.flops == 4 * 2 * 32 * 32 * 16
    assert window.flops == 4 * 2 * sum(min(i + 1, 8) for i in range(32)) * 16


def test_the_work_of_a_neighborhood_is_counted_pair_by_pair() -> None:
    """The windows of 3 x 3 tokens, cut off at the border of 4 x 5."""
    problem = neighborhood("map", 2, (4, 5), 2, 16, kernel_size=3, border="masked")
    assert problem.exponentials == 2 * 2 * (2 * 2 + 2 * 3) * (2 * 2 + 3 * 3)
    assert problem.flops == 4 * 16 * problem.exponentials
