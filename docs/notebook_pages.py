"""A mkdocs hook: every notebook becomes a page of the site, with its outputs as committed."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages and their pictures."""
    from mkdocs.structure.files import File

    for path in sorted(FOLDER.glob("*.ipynb")):
        text, pictures = page(path.stem, json.loads(path.read_text()))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def page(stem: str, notebook: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """The Markdown of a notebook, and the pictures that it shows, by name.

    Args:
      stem: name of its file without the suffix.
      notebook: its content, in nbformat 4.
    """
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\]\(\.\./docs/", "](../", source))  # pages are beside the folder of notebooks
            continue
        parts.append(_fenced(source, "python"))
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                name = f"{stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![The output of the cell above]({name})")
            elif text := "".join(data["text/plain"]).strip("\n"):
                parts.append(_fenced(text, "text"))
    parts.insert(1, f"*This page is `notebooks/{stem}.ipynb`, with its outputs.*")
    return "\n\n".join(parts) + "\n", pictures


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"
