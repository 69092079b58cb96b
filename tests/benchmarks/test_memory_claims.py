"""The verdicts of the claims on memories follow their docstrings, and models have equal sizes where they say so."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import pytest

import tasks
from benchmarks.claims import (
    associative_recall,
    lower_bounds,
    needle,
    overwriting,
    sensors,
    state_size,
    state_tracking,
    titans_ablation,
)
from layers.state import parameter_count
from zoo.registry import abstract, configure, variant


def rows(figure: str, **values: float) -> list[dict[str, Any]]:
    return [{"label": label, "seed": 0, "test": {figure: value}} for label, value in values.items()]


def test_associative_recall_needs_a_margin_over_both() -> None:
    def judged(delta: float, mamba2: float) -> bool:
        return associative_recall.verdict(
            rows("accuracy", delta_net=delta, gated_delta_net=0.0, mamba2=mamba2, mamba=0.2)
        )

    assert judged(0.9, 0.7)
    assert not judged(0.9, 0.85)
    assert not judged(0.25, 0.1)


def test_state_tracking_asks_who_can_and_who_can_not() -> None:
    contestants = [c.label for c in state_tracking.contest(False).contestants]
    assert {*state_tracking.SOLVERS, *state_tracking.SHOWN} < set(contestants)
    found = {label: 1.0 if label in state_tracking.SOLVERS else 0.3 for label in contestants}
    assert state_tracking.verdict(rows("accuracy", **found))
    assert not state_tracking.verdict(rows("accuracy", **{**found, "S3, 2 steps, beta < 2": 0.9}))
    assert not state_tracking.verdict(rows("accuracy", **{**found, "S3, mamba2": 0.95}))
    assert not state_tracking.verdict(rows("accuracy", **{**found, "parity, mlstm": 0.95}))
    assert state_tracking.verdict(rows("accuracy", **{**found, "parity, rwkv7": 1.0}))


def test_the_needle_is_judged_at_the_greatest_length() -> None:
    others = {"mamba": 0.5, "gated_delta_net": 0.5, "transformer, window 64": 0.5}
    assert needle.verdict(rows("at_4096", titans_mac=0.0, titans_lmm=0.95, **others))
    assert not needle.verdict(rows("at_4096", titans_mac=0.99, titans_lmm=0.8, **others))
    assert not needle.verdict(rows("at_4096", titans_mac=0.0, titans_lmm=0.95, **{**others, "mamba": 0.96}))


def test_every_removed_part_must_cost() -> None:
    found = dict.fromkeys(titans_ablation.PARTS, 3.0)
    assert titans_ablation.verdict(rows("bits_per_byte", **{**found, titans_ablation.WHOLE: 2.9, "depth 3": 2.8}))
    assert not titans_ablation.verdict(
        rows("bits_per_byte", **{**found, titans_ablation.WHOLE: 2.9, "no momentum": 2.85})
    )


def test_overwriting_ranks_three() -> None:
    ranked = {"mLSTM": 0.9, "GLA": 0.8, "linear attention": 0.7, "gated delta net": 1.0}
    assert overwriting.verdict(rows("accuracy", **ranked))
    assert not overwriting.verdict(rows("accuracy", **{**ranked, "GLA": 0.95}))
    assert not overwriting.verdict(rows("accuracy", **{**ranked, "linear attention": 0.85}))


def test_lower_bounds_are_judged_at_every_long_delay() -> None:
    def judged(last: float) -> bool:
        found: list[dict[str, Any]] = []
        for label, value in ((lower_bounds.BOUNDED, 0.8), (lower_bounds.FREE, 0.5)):
            test = {f"at_{n}": value for n in lower_bounds.LENGTHS}
            test |= {"at_32": 0.6} | ({"at_512": last} if label == lower_bounds.FREE else {})
            found.append({"label": label, "seed": 0, "test": test})
        return lower_bounds.verdict(found)

    assert judged(0.5)
    assert not judged(0.85)


def test_a_hierarchy_must_beat_both_flat_models() -> None:
    assert sensors.verdict(rows("loss", **{"HiSS": 0.4, "flat Mamba": 0.5, "flat S4D": 0.6}))
    assert not sensors.verdict(rows("loss", **{"HiSS": 0.4, "flat Mamba": 0.5, "flat S4D": 0.3}))
    assert not sensors.verdict(rows("loss", **{"HiSS": 0.4, "flat Mamba": 0.3, "flat S4D": 0.5}))


def test_each_paper_of_state_size_has_its_part_of_the_verdict() -> None:
    found = dict.fromkeys(state_size.MIXERS, 0.5) | {"GSA": 0.6, "NHA": 0.7, "MoM": 0.8}
    assert state_size.verdict(rows("accuracy", **found))
    for changed, row in (({"Mamba-2": 0.65}, 197), ({"gated delta net": 0.9}, 193), ({"NHA": 0.6}, 204)):
        judged = rows("accuracy", **{**found, **changed})
        assert not state_size.verdict(judged)
        assert [of for of, part in state_size.PAPER.items() if not part(judged)] == [row]


def test_a_point_of_the_picture_is_a_contestant() -> None:
    pytest.importorskip("matplotlib")
    found = [
        {"label": label, "seed": seed, "test": {"accuracy": 0.1 * seed + 0.01 * number, "state": 100.0 * (number + 1)}}
        for number, label in enumerate(state_size.MIXERS)
        for seed in range(3)
    ]
    (axes,) = state_size.draw(found).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    points = {line.get_label(): (*line.get_xdata(), *line.get_ydata()) for line in axes.get_lines()[1::2]}
    assert list(points) == list(state_size.MIXERS)
    assert points["GLA"] == (100.0, 0.1)
    labels = [text.xyann[1] for text in axes.texts]
    assert min(b - a for a, b in itertools.pairwise(labels)) >= 0.045 - 1e-9


@pytest.mark.parametrize("claim", [needle, sensors], ids=["needle", "sensors"])
def test_contestants_are_of_one_size(claim: ModuleType) -> None:
    sizes = []
    for contestant in claim.contest(False).contestants:
        entry = variant(contestant.model)
        options = {**contestant.options, **tasks.create(**contestant.task).model_options()}
        sizes.append(parameter_count(abstract(entry, configure(entry, options))))
    assert max(sizes) == pytest.approx(min(sizes), rel=0.02)
