"""The cards of the families say what the code has, and the drawings show its blocks."""

from __future__ import annotations

import re
import xml.etree.ElementTree

import pytest

import zoo
from docs import blocks, cards, catalogue
from tests.tiers import tiered

FAMILIES = list(cards.families())
STALE = "run: python -m docs.cards --family="


def test_the_page_is_fresh() -> None:
    counts = cards.load()
    assert list(counts) == zoo.list_models(), "run: python -m docs.cards"
    assert cards.PAGE.read_text() == cards.page(counts), "run: python -m docs.cards"
    assert sorted(path.stem for path in cards.DRAWINGS.iterdir()) == FAMILIES


@pytest.mark.parametrize("family", tiered(FAMILIES, lambda family: family == "gptj"))
def test_drawings_and_counts_are_fresh(family: str) -> None:
    drawn = cards.drawing(family)
    assert (cards.DRAWINGS / f"{family}.svg").read_text() == drawn, STALE + family
    name = cards.example(cards.families()[family]).name
    assert cards.load()[name] == catalogue.parameter_count(name), STALE + family


def test_a_drawing_shows_every_branch_and_its_parts() -> None:
    """GPT-J's attention and MLP are summed beside each other after one norm; BERT's norms come after the sum."""
    (parallel,) = blocks.kinds(zoo.creation.create_abstract("gptj_nano"))
    (row,) = parallel.rows
    assert [[box.title for box in column] for column in row.columns] == [
        ["LayerNorm"],
        ["mixer: MultiHeadAttention", "channel: MLP"],
    ]
    assert len(row.columns[1][0].lines) == 4
    (post,) = blocks.kinds(zoo.creation.create_abstract("bert_base", depth=2))
    assert [row.after.title for row in post.rows if row.after] == ["LayerNorm"] * 2
    svg = blocks.draw(zoo.creation.create_abstract("bert_base", depth=2))
    texts = [
        element.text or "" for element in xml.etree.ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    ]
    assert texts[0] == "2 blocks of this kind, blocks.0 to blocks.1; numbers of the first"
    assert "query 768 → 768" in texts
    assert len(re.findall("<circle", svg)) == 2
