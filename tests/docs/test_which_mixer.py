"""The page that helps to choose a mixer agrees with the counts, and its picture shows them."""

from __future__ import annotations

import itertools
import json

import pytest

import layers
from benchmarks import counted, curves
from docs import which_mixer


def test_the_page_is_fresh() -> None:
    assert which_mixer.PAGE.read_text() == which_mixer.page(), "run: python -m docs.which_mixer"


def test_every_mixer_and_claim_was_counted() -> None:
    report = which_mixer.load()
    assert list(report["mixers"]) == layers.list_mixers(), (
        "run: python -m benchmarks.counted, and python -m docs.which_mixer"
    )
    assert set(report["claims"]) == set(which_mixer.claims())


@pytest.mark.full
def test_the_file_says_what_the_code_gives() -> None:
    """At the greatest length, of a claim the first model: tracing and building are what counting takes."""
    report = which_mixer.load()
    for name, row in report["mixers"].items():
        # Fields of view are made of all pairs of tokens, which takes long.
        at = slice(1, 2) if name == "lookhere" else slice(-1, None)
        wanted = {**row, **{part: row[part][at] for part in ("operations", "state_bytes")}}
        assert counted.count(name, counted.LENGTHS[at]) == wanted, "run: python -m benchmarks.counted"
    for path in counted.CLAIMS.glob("*.json"):
        claim = json.loads(path.read_text())
        model, options = claim["rows"][0]["model"], claim["rows"][0]["options"]
        mixers = counted.mixers_of(model, options)
        assert set(mixers) <= set(report["claims"][claim["name"]]), "run: python -m benchmarks.counted"


def test_the_picture_shows_every_mixer() -> None:
    pytest.importorskip("matplotlib")
    report = which_mixer.load()
    shown = {}
    for axes in which_mixer.draw(report).axes:
        assert (axes.get_xscale(), axes.get_yscale(), axes.get_xlabel()) == ("log", "log", "tokens")
        shown |= {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert shown == {name: row["operations"] for name, row in report["mixers"].items() if not which_mixer.wraps(name)}
    assert all(f">{name}<" in which_mixer.PICTURE.read_text() for name in shown), "run: python -m docs.which_mixer"


def test_names_beside_lines_do_not_overlap() -> None:
    places = curves.centered([1.0, 1.0, 1.1, 100.0], 2.0)
    assert [round(b / a, 6) >= 2 for a, b in itertools.pairwise(places)] == [True] * 3
    assert places[-1] == pytest.approx(100)
    assert places[0] < 1 < places[2]
