"""The catalogue of the roster is what the registries and the results hold."""

from __future__ import annotations

import pytest

import layers
from docs import papers
from docs.papers import Entry, Paper, Part


def test_the_page_is_fresh() -> None:
    assert papers.PAGE.read_text() == papers.page(), "run: python -m docs.papers"


def test_every_paper_stands_on_the_page_once() -> None:
    found = papers.entries()
    assert [entry.paper.row for entry in found] == list(range(243))
    lines = papers.page().splitlines()
    assert [sum(line.startswith(f"| {entry.paper.row} |") for line in lines) for entry in found] == [1] * 243
    assert {kind for entry in found for kind, _ in entry.paper.owed} >= {
        part.kind for entry in found for part in entry.parts
    } - {"reduction", "op"}


@pytest.mark.parametrize(
    ("owed", "kinds", "state"),
    [
        ((("mixer", ""), ("kernel", "")), ("mixer", "kernel"), "there"),
        ((("mixer", ""), ("kernel", "")), ("mixer", "op"), "partly"),
        ((("architecture", "other"),), ("architecture",), "partly"),
        ((("architecture", "it"),), ("architecture",), "there"),
        ((("claim", ""),), (), "not yet"),
        ((), (), "nothing to build"),
    ],
)
def test_a_paper_is_there_when_all_that_it_is_owed_is_found(
    owed: tuple[tuple[str, str], ...], kinds: tuple[str, ...], state: str
) -> None:
    entry = Entry(Paper(0, "1", "name", "title", owed, "what"), tuple(Part(kind, "it", "module") for kind in kinds))
    assert entry.state == state


def test_a_row_that_is_not_in_the_roster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers.mixer_class("mamba"), "paper", (9999,))
    with pytest.raises(ValueError, match=r"layers\.state_space\.mamba names row 9999"):
        papers.entries()
