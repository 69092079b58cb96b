"""Meshes: the same run on one device and on many, parameters created in shards, continued on another mesh, by several
processes, and after one of them is killed.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.devices import EightDevices, environment
from tests.tiers import tiered
from training import sharding

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4


def start(runs: list[dict[str, Any]], devices: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.training.mesh_run", json.dumps(runs)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def results(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error[-2000:]
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def together(
    workdir: Path, processes: int, devices: int, mesh: dict[str, int], steps: int = STEPS, **fields: Any
) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    whom = [
        {"coordinator": f"localhost:{port}", "processes": processes, "process": number} for number in range(processes)
    ]
    return [
        start([{"workdir": str(workdir), "mesh": mesh, "steps": steps, "distributed": me, **fields}], devices)
        for me in whom
    ]


PLAN: dict[str, dict[str, Any]] = {
    "one": {"mesh": {"data": 1}, "steps": STEPS},
    "fsdp": {"mesh": {"data": 2, "fsdp": -1}, "steps": STEPS, "accumulate": 1},
    "split": {"mesh": {"fsdp": 2, "tensor": 2, "sequence": 2}, "steps": 2},
    "taken up": {"mesh": {"data": 2}, "steps": STEPS},
    "mamba": {"mesh": {"data": 1}, "steps": 2, "model": "mamba_nano"},
    "mamba split": {"mesh": {"data": 2, "sequence": 4}, "steps": 2, "model": "mamba_nano"},
    "stream": {"mesh": {"data": 1}, "steps": STEPS, "model": "mamba_nano"},
    "stream split": {"mesh": {"data": 2}, "steps": 2, "model": "mamba_nano"},
    "stream taken up": {"mesh": {"data": 2, "fsdp": 2}, "steps": STEPS, "model": "mamba_nano"},
}


def text_in_order(home: Path) -> dict[str, Any]:
    """A task whose rows go on from batch to batch."""
    folder = home / "text"
    folder.mkdir(exist_ok=True)
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"file {number} " * (number % 9 + 3))
    dataset = {"name": "files", "path": str(folder)}
    return {"name": "text", "dataset": dataset, "sequence_length": 16, "order": "stream"}


class Runs:
    """Runs of one process of eight devices, each made when it is first asked for; one "taken up" goes on where its
    "split" was broken off, on other devices.
    """

    def __init__(self, eight_devices: EightDevices, home: Path) -> None:
        self.eight_devices, self.home = eight_devices, home
        self.made: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in self.made:
            begun = name.replace("taken up", "split")
            if begun != name:
                assert self[begun]
            task = {"task": text_in_order(self.home)} if name.startswith("stream") else {}
            self.made[name] = self.eight_devices(
                "tests.training.mesh_run:run", str(self.home / begun), **PLAN[name], **task
            )
        return self.made[name]


@pytest.fixture(scope="module")
def runs(eight_devices: EightDevices, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(eight_devices, tmp_path_factory.mktemp("runs"))


def agree(found: dict[str, Any], expected: dict[str, Any], steps: int = STEPS) -> None:
    numbers = [str(step) for step in range(1, steps + 1)]
    assert sorted(found["losses"]) == numbers
    np.testing.assert_allclose(
        [found["losses"][n] for n in numbers], [expected["losses"][n] for n in numbers], rtol=1e-5
    )


@pytest.mark.parametrize("name", tiered(["fsdp", "taken up"], lambda name: name == "fsdp"))
def test_the_mesh_changes_nothing(runs: Runs, name: str) -> None:
    agree(runs[name], runs["one"])
    assert runs[name]["figures"]["raw"]["loss"] == pytest.approx(runs["one"]["figures"]["raw"]["loss"], rel=1e-5)


@pytest.mark.full
def test_a_recurrence_over_a_split_sequence(runs: Runs) -> None:
    agree(runs["mamba split"], runs["mamba"], 2)


@pytest.mark.full
def test_what_rows_have_read_is_split_as_they_are(runs: Runs) -> None:
    """And taken up on another mesh."""
    agree(runs["stream taken up"], runs["stream"])
    assert runs["stream taken up"]["figures"]["raw"]["loss"] == pytest.approx(
        runs["stream"]["figures"]["raw"]["loss"], rel=1e-5
    )


@pytest.mark.full
def test_parameters_are_born_in_parts(runs: Runs) -> None:
    """Each of the 4 parts holds a quarter, and the small parameters whole."""
    whole = next(iter(runs["one"]["held"].values()))
    for name in ("fsdp", "split"):
        held = runs[name]["held"]
        assert len(held) == 8
        assert max(held.values()) < whole / 4 + 2048
    placed = runs["split"]["split"]
    assert "tensor" in placed["blocks.0.mixer.query.kernel"].split(",")[1], "heads are split by columns"
    assert "tensor" in placed["blocks.0.mixer.out.kernel"].split(",")[0], "and summed up by rows"


@pytest.mark.full
def test_several_processes(runs: Runs, tmp_path: Path) -> None:
    """Two of two devices each; of one device each they are below."""
    found = [results(process)[0] for process in together(tmp_path, 2, 2, {"data": 2, "fsdp": 2})]
    agree(found[0], runs["one"])
    assert all(other["figures"] == found[0]["figures"] for other in found)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 4]


@pytest.mark.full
def test_one_process_killed_ends_the_run_which_then_goes_on(tmp_path: Path) -> None:
    first, second = together(tmp_path, 2, 1, {"data": 2}, steps=100_000)

    def saved() -> list[int]:
        return sorted(int(path.name) for path in (tmp_path / "checkpoints").glob("*") if path.name.isdecimal())

    while not saved():
        assert first.poll() is None
        time.sleep(0.2)
    second.send_signal(signal.SIGKILL)
    _, error = first.communicate(timeout=300)
    second.communicate()
    assert first.returncode == 1
    assert "process 0 of 2 has lost another process of the run" in error
    assert "continues from the last checkpoint" in error
    total = saved()[-1] + 2
    found = [results(process)[0] for process in together(tmp_path, 2, 1, {"data": 2}, steps=total)]
    assert found[0]["step"] == total


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3, "fsdp": 2}, "mesh.data=3, mesh.fsdp=2, but there are"),
        ({"data": -1, "fsdp": -1}, "which one axis can take"),
        ({"tensor": 0}, "each size is at least 1"),
        ({"sequnce": 2}, "did you mean 'sequence'"),
    ],
)
def test_meshes_that_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sharding.create_mesh(sizes)
