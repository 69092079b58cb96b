"""The benchmark of decoding, on a small model without a peer."""

from __future__ import annotations

import time

import pytest

from benchmarks.decoding import measure, two_times


def test_a_token_and_the_prompt_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: clock)

    def generate(count: int) -> None:
        nonlocal clock
        clock += 0.05 + 0.01 * (count - 1)

    assert two_times(generate, 16, 2) == {"token": pytest.approx(10), "prompt": pytest.approx(50)}


@pytest.mark.full
def test_a_row_without_a_peer() -> None:
    row = measure("gla_nano", 1, 16, 1, 1.0)
    assert row["floor_ms"] > 0
    assert row["ours_ms"]["prompt"] > 0
    assert "times_faster" not in row
    assert row["asked"] == {"times_faster": 3.0, "or_over_floor": 1.25}
