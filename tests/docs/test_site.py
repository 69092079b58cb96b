"""The site holds together: every page is in its navigation, links lead somewhere, messages are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pallas_kernels

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1].split("\nplugins:\n")[0]
    assert sorted(re.findall(r": ([\w/]+\.md)$", navigation, re.MULTILINE)) == PAGES


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_relative_links_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / page).read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_marks_of_included_parts_have_both_ends() -> None:
    """What pages include from another file is there."""
    for page in PAGES:
        for file, part in re.findall(r'^--8<-- "([^":]+):(\w+)"$', (DOCS / page).read_text(), re.MULTILINE):
            marks = re.findall(rf"--8<-- \[(\w+):{part}\]", (ROOT / file).read_text())
            assert marks == ["start", "end"], (page, file, part)


def test_every_op_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "pallas_kernels.md").read_text()
    assert [
        name for name in pallas_kernels.__all__ if not re.search(rf"^::: [\w.]+\.{name}$", page, re.MULTILINE)
    ] == []


def test_messages_are_those_of_the_code() -> None:
    messages = re.findall(r"^\| `(.+?)` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    folders = ("layers", "pallas_kernels", "pictures", "suggestions", "tasks", "training", "zoo")
    code = "".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert len(messages) > 30
    assert [message for message in messages if message not in code] == []
