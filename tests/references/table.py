"""Writes docs/weights.md from the comparisons with reference implementations: ``python -m tests.references.table``.

With files of tests, it runs these alone and keeps the rows of the others.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PATH = ROOT / "docs" / "weights.md"
ABOUT = """# Released weights

Written by `python -m tests.references.table`; not edited by hand.

Each row compares a model with its reference implementation under the same random weights, which are loaded by
their released names: logits, the features of every stage or block, and once for each kind of block the gradient of a
scalar loss with respect to the input (for language models, to every parameter), in float32. The difference is
max|ours - theirs| / max|theirs|, the largest of them. "live" runs the reference; "recorded" compares with outputs that
a script under tests/references recorded. Models are compared with fewer blocks and features than published; parameter
counts are compared for the published sizes. A row that says "layer" compares one layer and its gradient; one that says
"op" an op with no parameters; one that says "read by timm" a file of ours, or of the authors' names, which timm's
converter reads.

| architecture | reference | kind | arrays mapped | largest relative difference |
| --- | --- | --- | ---: | ---: |
"""


class Collector:
    """Gathers what passed tests recorded as "parity"."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.rows += [value for name, value in report.user_properties if name == "parity"]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)


def main(files: list[str]) -> int:
    """Runs the comparisons in some files of tests, or all, and writes the table; refuses to write one with rows left
    out.

    Rows of other files stay as they are.
    """
    collector = Collector()
    tests = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "record_property" in path.read_text()]
    status = pytest.main(["-q", "--full", "-n", "0", "-p", "no:cacheprovider", *(files or tests)], plugins=[collector])
    if status or collector.skipped:
        print(f"not written: a comparison failed or was skipped {collector.skipped}", file=sys.stderr)
        return 1
    rows = [
        (r["architecture"], r["reference"], r["kind"], str(r["mapped"]), f"{r['difference']:.0e}")
        for r in collector.rows
    ]
    if files:
        written = [tuple(cell.strip() for cell in line.strip("| \n").split(" | ")) for line in _written()]
        rows += [row for row in written if row[:3] not in {row[:3] for row in rows}]
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(ABOUT + "".join(f"| {' | '.join(row)} |\n" for row in sorted(rows)))
    print(f"{PATH}: {len(rows)} rows")
    return 0


def _written() -> list[str]:
    """The rows of the table as it is."""
    return PATH.read_text().split("| ---: |\n", 1)[1].splitlines()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
