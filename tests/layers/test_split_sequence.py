"""Mixers on sequences split over devices: equal to one device, outputs and gradients; dilated attention sends only what its long segments keep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.layers.sequence_run import CASES, FEATURES, LENGTH, ROWS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def lines() -> dict[str, dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-m", "tests.layers.sequence_run"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_one_device(lines: dict[str, dict[str, Any]], case: str) -> None:
    for name, difference in lines[case]["differences"].items():
        assert difference < 1e-5, name


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("dilated")])
def test_dilated_attention_sends_what_it_keeps(lines: dict[str, dict[str, Any]], case: str) -> None:
    """Rates 2 and 4 go beyond a device: never more than half of the keys of its rows, which two devices share."""
    assert 0 < lines[case]["largest_gathered"] <= (ROWS // 2) * LENGTH * FEATURES // 2
