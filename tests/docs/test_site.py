"""The site is consistent: every page is in its navigation, links resolve, and quoted messages are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import pallas_kernels
from docs import notebook_pages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1].split("\nplugins:\n")[0]
    pages = sorted([*PAGES, *(f"notebooks/{path.stem}.md" for path in NOTEBOOKS)])
    assert sorted(re.findall(r": ([\w/]+\.md)$", navigation, re.MULTILINE)) == pages


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_page_with_all_its_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text())
    text, pictures = notebook_pages.page(path.stem, notebook)
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    assert len(pictures) == sum("image/png" in output.get("data", {}) for output in outputs) > 0
    assert re.findall(r"\]\((\w+\.png)\)", text) == list(pictures)
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    assert [line for output in outputs for line in output.get("text", ()) if line.strip("\n") not in text] == []
    links = re.findall(r"\]\((\.\./[^)#]+)", text)
    assert [link for link in links if not (DOCS / "notebooks" / link).resolve().exists()] == []


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
