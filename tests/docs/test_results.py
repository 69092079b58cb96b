"""The pages of measurements and counts say what the result files say."""

from __future__ import annotations

import json

import pytest

from benchmarks import billion_tokens, vision
from benchmarks.claims import routing
from docs import results, speed


def test_the_page_is_fresh() -> None:
    assert results.PAGE.read_text() == results.page(), "run: python -m docs.results"


def test_the_page_of_speeds_is_fresh_and_tells_losses() -> None:
    assert speed.PAGE.read_text() == speed.page(), "run: python -m docs.speed"
    measured = {
        "ours": {"forward": 2.0},
        "eager": {"forward": 1.0},
        "compile": {},
        "times_faster_than_eager": {"forward": 0.5},
    }
    text = speed.vision({"versions": {"jax": "1"}, "milliseconds": {"m, batch 1": measured}})
    assert "| m, batch 1 | forward pass | 2 | 1 |  | 0.5 |  |" in text


def test_families_are_shown_with_the_targets_that_they_miss() -> None:
    fast = {"forward": 2.0, "training_step": 6.0, "memory": 30.0, "losses": [1.0]}
    slow = {"forward": 1.0, "training_step": 6.0, "memory": 60.0, "losses": [1.0]}
    fast["logits"], slow["logits"] = [1.0], [2.0]
    rows = {
        "b, batch 8": {"family": "second", "peer": "timm b", **vision.combine(fast, [], {"eager": slow})},
        "a, batch 8": {"family": "first", "peer": "timm a", "stopped": "needs a GPU"},
        "c, batch 8": {"family": "third", "peer": "timm c", **vision.combine(fast, [], {"eager": {"stopped": "late"}})},
    }
    text = speed.vision({"versions": {"jax": "1"}, "asked": vision.ASKED, "milliseconds": rows})
    lines = [
        "| first | a, batch 8 | timm a |  |  |  |  |  |  |  |  |  | needs a GPU |",
        "| second | b, batch 8 | timm b | 2 | 1 | 0.5 | 6 | 6 | 1 | 30 | 60 | 0.5 | "
        "missed: forward pass; logits differ by 0.5 |",
        "| third | c, batch 8 | timm c | 2 |  |  | 6 |  |  | 30 |  |  | PyTorch late |",
    ]
    assert "\n".join(lines) in text
    assert "of the 1 that were measured: forward pass 0.5 (target 1.15, missed) and training step 1 (target 1)" in text


def test_starting_is_shown_with_what_was_stopped() -> None:
    row = {
        "ours": {"create": {"cpu": 2.0, "wall": 1.5}},
        "baseline": {"create": {"cpu": 1.0, "wall": 1.0}, "stopped": "not done after 9 s"},
    }
    row |= {"times_faster_than_baseline": {"create": 0.5}, "baseline_commit": "1234567"}
    loading = {"ours": {"load": {"cpu": 1.0, "wall": 1.0}, "load, peak": 1.1}}
    text = speed.startup({"versions": {"jax": "1"}, "rows": {"m": row, "loading": loading}})
    assert "| m | create | 2.00 (1.50) | 1.00 (1.00) |  | 0.5 |  |" in text
    assert "| m | before: not done after 9 s |" in text
    assert "| load | 1.00 (1.00) |  | 1.1 |  |" in text
    assert "1234567" in text


def test_a_second_run_that_starts_late_is_told_so() -> None:
    took = {mark: {"wall": 5.5, "cpu": 6.0} for mark in ("first", "ready", "traced", "trains")}
    rows = {"vit": {"ours": {**took, "trains": {"wall": 4.5, "cpu": 4.0}}, "baseline": took}}
    text = speed.second_run({"versions": {"jax": "1"}, "asked": 5.0, "rows": rows})
    assert "| configs/vit.py |  | 5.50 (6.00) | 5.50 (6.00) | 5.50 (6.00) | 4.50 (4.00) |  |" in text
    assert "| configs/vit.py | before | 5.50 (6.00) | 5.50 (6.00) | 5.50 (6.00) | 5.50 (6.00) | missed |" in text


def test_an_input_that_is_too_slow_is_told_so() -> None:
    row = {"ours": 30.0, "timm": 20.0, "step": 20.0, "fed": 15.0, "waiting": 0.1, "times_timm": 1.5, "asked": 2.0}
    report = {"model": "m", "batch_size": 32, "workers": 2, "versions": {"jax": "1"}}
    for times, said in ((1.5, "the step takes: missed."), (2.5, "the step takes.")):
        text = speed.input_pipeline({**report, "images_per_second": {**row, "times_the_step": times}})
        assert said in text
        assert f"| 30 | 20 | 1.5 | 20 | {times} |" in text
    assert "waits 10.0% of the time" in text


def test_the_page_of_a_billion_tokens_is_fresh() -> None:
    rows = json.loads(billion_tokens.RESULTS.read_text())["rows"]
    assert billion_tokens.PAGE.read_text() == billion_tokens.page(rows), "run: python -m benchmarks.billion_tokens"


def test_a_claim_that_does_not_hold_is_told_so() -> None:
    rows = [
        {"label": "m", "parameters": 1000, "steps": 5, "seed": seed, "test": {"accuracy": 0.1 * seed}, "chance": 0.5}
        for seed in range(3)
    ]
    text = results.section(
        {"name": "routing", "claim": "A is better. As somebody found.", "holds": False, "rows": rows}
    )
    assert f"**It does not hold here**. Criterion: {' '.join((routing.verdict.__doc__ or '').split())}" in text
    assert "| m | 1,000 | 5 | 0, 1, 2 | 0.100 (0.000 to 0.200) | 0.500 |" in text


def test_a_claim_that_draws_has_its_picture() -> None:
    row = {"label": "GLA", "parameters": 10, "steps": 5, "seed": 0, "test": {"accuracy": 0.5}, "chance": None}
    text = results.section({"name": "state_size", "claim": "Recall. By size.", "holds": None, "rows": [row]})
    assert "\n![Recall](pictures/claim_state_size.svg)\n" in text
    assert "![" not in results.section({"name": "copying", "claim": "A. B.", "holds": None, "rows": [row]})


def test_a_claim_stands_once_and_says_what_is_asked() -> None:
    text = results.page()
    titles = [line for line in text.splitlines() if line.startswith("## ") and line != "## Not measured yet"]
    assert len(titles) == len(set(titles)) == len(results.reports()) == text.count("Criterion: ")
    assert "| learned, 4 of 16 | 247,402 | 808 |" in text


def test_claims_that_wait_for_a_run_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = results.reports()
    monkeypatch.setattr(results, "reports", lambda: others)
    text = results.page()
    waiting = text.partition("## Not measured yet")[2].splitlines()[2:]
    listed = {line.split("`")[1].rpartition(".")[2] for line in waiting}
    assert first["name"] in listed
    assert listed == results.unmeasured().keys()
    assert not listed & {report["name"] for report in others}
