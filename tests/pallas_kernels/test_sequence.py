"""Ops on sequences split over devices: equal to one device, gradients too, by the way dispatch is meant to pick."""

from __future__ import annotations

import pytest

from pallas_kernels.attention.distributed import _deal
from primitives import sequence
from tests.devices import EightDevices
from tests.pallas_kernels.sequence_run import CASES
from tests.tiers import tiered

# Of each way of sharing one: heads traded, pieces going round, states passed on, kernels that get what is theirs.
QUICK = {
    "heads traded, causal, padded, window",
    "ring, causal, padded, segments",
    "gated delta, two steps",
    "packed centered convolution",
    "kernel: constant decay",
}


@pytest.mark.parametrize("case", tiered(CASES, lambda case: case in QUICK))
def test_equal_to_one_device(eight_devices: EightDevices, case: str) -> None:
    found = eight_devices("tests.pallas_kernels.sequence_run:run", case)
    assert found["chosen"] == list(CASES[case][1])
    assert found["outputs"] < 1e-5
    for name, difference in found["gradients"].items():
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
