"""Ops on sequences split over devices: equal to one device, gradients too, by the way that dispatch is meant to pick."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pallas_kernels import sequence
from pallas_kernels.attention.distributed import _deal
from tests.pallas_kernels.sequence_run import CASES

ROOT = Path(__file__).resolve().parents[2]
# One process makes what all of these tests read.
pytestmark = pytest.mark.xdist_group("ops on split sequences")


@pytest.fixture(scope="module")
def lines() -> dict[str, dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "tests.pallas_kernels.sequence_run"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_one_device(lines: dict[str, dict[str, Any]], case: str) -> None:
    line = lines[case]
    assert line["chosen"] == list(CASES[case][1])
    assert line["outputs"] < 1e-5
    for name, difference in line["gradients"].items():
        assert difference < 1e-5, name


def test_off_a_mesh_nothing_is_split() -> None:
    assert sequence.parts() == 1
    assert sequence.objection(64) == "sequences are not split over devices here"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_every_device_gets_one_early_and_one_late_piece(count: int) -> None:
    """Piece p of 2n, p and 2n - 1 - p together: each device does as much causal work as any other."""
    firsts, seconds = _deal(count)
    got: dict[int, list[int]] = {}
    for half, pairs in enumerate((firsts, seconds)):
        assert sorted(to for _, to in pairs) == list(range(count)), "each exchange is a permutation"
        for source, to in pairs:
            got.setdefault(to, []).append(2 * source + half)
    assert all(sorted(pieces) == [device, 2 * count - 1 - device] for device, pieces in got.items())
