"""The two tiers: what is marked full waits for --full, and a quick test that takes too long fails the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiers import tiered

RNG = np.random.default_rng(0)
ROOT = Path(__file__).resolve().parents[2]
SUITE = """
import pytest
from tests import costs
costs.MOST = 0.01

def test_slow(): assert sum(range(10**7))

@pytest.mark.full
def test_full(): assert sum(range(10**7))
"""


def test_costs(tmp_path: Path) -> None:
    path = tmp_path / "test_suite.py"
    path.write_text(SUITE)
    options = ["-c", ROOT / "pyproject.toml", "-n", "0", "-p", "tests.conftest", "-p", "no:cacheprovider", "--costs"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "1 passed, 1 deselected" in done.stdout
    assert "and a quick test has 0.01: make it smaller, share its programs, or mark it full" in done.stdout
    assert done.returncode == 1


def test_tiered_marks_what_is_not_quick() -> None:
    one, two, pair = tiered([1, 2, (3, 4)], lambda value: value == 1)
    assert one == 1
    assert (two.values, pair.values) == ((2,), (3, 4))
    assert [mark.name for value in (two, pair) for mark in value.marks] == ["full", "full"]


@pytest.mark.parametrize("order", ["first", "second"])
def test_every_test_draws_the_same_numbers(order: str) -> None:
    """A module's generator is set back before each of its tests: workers run them in any order."""
    assert RNG.random() == np.random.default_rng(0).random()
