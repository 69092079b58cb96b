"""The page of measured claims, from the files under benchmarks/results/: ``python -m docs.results`` writes
docs/results.md, and the pictures of claims whose modules have a function ``draw``.
"""

from __future__ import annotations

import ast
import importlib
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.rows import save
from docs.catalogue import as_code, table

HOME = Path(__file__).resolve().parents[1]
CLAIMS = HOME / "benchmarks" / "results" / "cpu" / "claims"
PAGE = HOME / "docs" / "results.md"
PICTURES = HOME / "docs" / "pictures"
LEFT_OUT = ("loss", "perplexity", "top5", "exact")
VERDICTS = {
    True: "It holds here",
    False: "**It does not hold here**",
    None: "Not judged: contestants or seeds are missing",
}
HEAD = """# Claims, measured

Written by `python -m docs.results` from the files under `benchmarks/results/cpu/claims`; not edited by hand. Each row
is a model trained as defined by the claim's module under `benchmarks/claims`; figures are medians over the listed
seeds, with the extremes where there are several. A missing figure was not measured. Whether a claim holds is decided on
the medians, by the criterion given in each section; where the ranges of two models overlap, these seeds do not separate
them.
"""


def _figure(rows: list[dict[str, Any]], name: str) -> str:
    values = [row["test"][name] for row in rows if name in row["test"]]
    if not values:
        return ""
    middle = f"{statistics.median(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3f} to {max(values):.3f})"


def asked(name: str) -> str:
    """The criterion of a claim, applied to medians: the docstring of its module's function ``verdict``."""
    return " ".join(importlib.import_module(f"benchmarks.claims.{name}").verdict.__doc__.split())


def picture(name: str) -> Path | None:
    """The path of a claim's picture; None where its module draws none."""
    drawn = hasattr(importlib.import_module(f"benchmarks.claims.{name}"), "draw")
    return PICTURES / f"claim_{name}.svg" if drawn else None


def section(report: dict[str, Any]) -> str:
    """A claim: what it says, whether it holds and by which criterion, and its table."""
    title, _, rest = report["claim"].partition(". ")
    rows = report["rows"]
    figures = [name for name in dict.fromkeys(name for row in rows for name in row["test"]) if name not in LEFT_OUT]
    head = ["model", "parameters", "steps", "seeds", *(name.replace("_", " ") for name in figures), "chance"]
    lines = []
    for label, steps in dict.fromkeys((row["label"], row["steps"]) for row in rows):
        own = [row for row in rows if (row["label"], row["steps"]) == (label, steps)]
        chance = own[0].get("chance")
        lines.append(
            [
                label,
                f"{own[0]['parameters']:,}",
                str(steps),
                ", ".join(str(row["seed"]) for row in own),
                *(_figure(own, name) for name in figures),
                "" if chance is None else f"{chance:.3f}",
            ]
        )
    verdict = f"{VERDICTS[report['holds']]}. Criterion: {asked(report['name'])}"
    drawn = picture(report["name"])
    shown = f"![{title}]({drawn.relative_to(PAGE.parent)})\n\n" if drawn else ""
    return f"## {title}\n\n{as_code(rest)}\n\n{verdict}\n\n{shown}{table(head, lines)}"


def merged(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One report for each claim: the one that is judged, with the rows that other files have of it."""
    claims: dict[str, dict[str, Any]] = {}
    for report in sorted(reports, key=lambda report: report["holds"] is None):
        first = claims.setdefault(report["name"], {**report, "rows": []})
        first["rows"] = [*first["rows"], *report["rows"]]
    return [claims[name] for name in sorted(claims)]


def reports() -> list[dict[str, Any]]:
    """One report for each claim that was measured."""
    return merged([json.loads(path.read_text()) for path in sorted(CLAIMS.glob("*.json"))])


def unmeasured() -> dict[str, str]:
    """The claims that were not measured yet: the first paragraph of each docstring, by the name of its module."""
    measured = {report["name"] for report in reports()}
    modules = {path.stem: path for path in sorted((HOME / "benchmarks" / "claims").glob("*.py"))}
    claims = {name: (ast.get_docstring(ast.parse(path.read_text())) or "") for name, path in modules.items()}
    return {
        name: " ".join(text.partition("\n\n")[0].split())
        for name, text in claims.items()
        if name not in {*measured, "run", "__init__"}
    }


def waiting() -> str:
    """The section of the claims that were not measured yet; empty if there are none."""
    lines = [f"- `python -m benchmarks.claims.{name}`: {text}" for name, text in unmeasured().items()]
    return "\n".join(["## Not measured yet", "", *lines, ""]) if lines else ""


def page() -> str:
    """All of the page."""
    return "\n".join([HEAD, *map(section, reports()), waiting()]).rstrip() + "\n"


def draw() -> None:
    """Draws the pictures."""
    for report in reports():
        if drawn := picture(report["name"]):
            figure = importlib.import_module(f"benchmarks.claims.{report['name']}").draw(report["rows"])
            save({drawn.stem: figure}, PICTURES, "", "claims")


if __name__ == "__main__":
    PAGE.write_text(page())
    draw()
