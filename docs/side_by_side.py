"""The page of mixers side by side, from what ``python -m benchmarks.mixers`` wrote: ``python -m docs.side_by_side``
writes docs/side_by_side.md.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.mixers import WAYS
from benchmarks.rows import PICTURES
from docs.catalogue import table
from docs.results import HOME
from training import problems, standings

RESULTS = HOME / "benchmarks" / "results" / "cpu"
PAGE = HOME / "docs" / "side_by_side.md"
FORMS = {"mixers": "All mixers", "mixers_quick": "Eight mixers, the quick form"}
HEAD = """# Mixers side by side

Written by `python -m docs.side_by_side` from the files that `python -m benchmarks.mixers` writes under
`benchmarks/results/cpu`; not edited by hand. [A how-to page](how_to/compare.md) shows how to compare mixers of your own
choice.

**Learning.** One backbone for tokens and one for images, two blocks of 64 features each: only the mixer differs, with
its default options. The width of the MLP is chosen so that the model has as many parameters as the one with plain
attention; where a mixer alone has more, the whole model is narrower. "over attention's" is the remaining difference.
Data, number of steps, batch size and learning rate are the same for all, and nothing is tuned for a single mixer: a
figure shows what this many steps teach, not what a mixer can reach. Mixers that are bidirectional only, or take maps,
are left out of the causal token tasks. All mixers read images; causal ones read them in both directions.

**Costs.** One layer of 256 features and four heads, causal where possible, reads one sequence in float32, or a square
map for mixers of maps. Operations are counted in the program, times are the least of several runs, and memory is what
the compiled program needs, including arguments and results. Training is the gradient of the mean square of the outputs.
"""
Report = dict[str, Any]


def _machine(rows: list[Report]) -> str:
    """On how many cores rows were measured, and beside what load."""
    parts = []
    for what, of in (("learning", "task"), ("costs", "length")):
        own = [row for row in rows if of in row["job"]]
        if own:
            cores = " or ".join(map(str, sorted({row["cores"] for row in own})))
            loads = [row["load_average"] for row in own]
            parts.append(f"{what} on {cores} cores at a load average of {min(loads):.1f} to {max(loads):.1f}")
    return ", ".join(parts)


def learning(rows: list[Report], name: str) -> list[str]:
    """The section on learning: the picture, and a table for each task."""
    own = [row for row in rows if "task" in row["job"]]
    if not own:
        return ["Learning was not measured.\n"]
    parts = [f"![What each mixer learns]({(PICTURES / f'{name}_learning.svg').relative_to(PAGE.parent)})\n"]
    for task in dict.fromkeys(row["job"]["task"] for row in own):
        on, steps = problems.problem(task), sorted({r["job"]["steps"] for r in own if r["job"]["task"] == task})
        chances = {row["chance"] for row in own if row["job"]["task"] == task and row.get("chance") is not None}
        chance = f" Chance is {min(chances):.3f}." if chances else ""
        budget = f"{' or '.join(map(str, steps))} steps of {on.batch_size} at {on.learning_rate:g}"
        head, *lines = standings.columns(own, task)
        parts.append(f"**{task.capitalize()}**: {on.about}; {budget}.{chance}\n\n{table(head, lines)}")
    return parts


def costs(rows: list[Report], name: str) -> list[str]:
    """The section on costs against length: the picture, and a table for each pass."""
    own = [row for row in rows if "length" in row["job"]]
    if not own:
        return ["Costs were not measured.\n"]
    lengths = sorted({row["job"]["length"] for row in own})
    parts = [f"![Time and memory against length]({(PICTURES / f'{name}_cost.svg').relative_to(PAGE.parent)})\n"]
    for way in WAYS:
        lines = []
        for mixer in dict.fromkeys(row["job"]["mixer"] for row in own):
            at = {r["job"]["length"]: r for r in own if r["job"]["mixer"] == mixer and r["job"]["way"] == way}
            parameters = next((f"{row['parameters']:,}" for row in at.values() if "parameters" in row), "")
            lines.append([f"`{mixer}`", parameters, *(_cell(at.get(length)) for length in lengths)])
        head = ["mixer", "parameters", *(f"{length:,} tokens" for length in lengths)]
        parts.append(f"**{way.capitalize()}**: milliseconds, MiB, 10^9 operations.\n\n{table(head, lines)}")
    return parts


def _cell(row: Report | None) -> str:
    if row is None:
        return "not measured"
    if "milliseconds" not in row:
        return " ".join(str(row["fault"]).split())[:100]
    return ", ".join(map(_number, (row["milliseconds"], row["mib"], row["operations"] / 1e9)))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def section(report: Report, name: str) -> str:
    """The section of one form of the benchmark, with how many of the requested rows were measured."""
    rows = report["rows"]
    missing = report["rows_asked_for"] - len(rows)
    counted = f"{len(rows)} rows were measured" + (
        f", and {missing} of those requested were not" if missing > 0 else ""
    )
    command = f"python -m benchmarks.mixers{' --quick' if report['quick'] else ''}"
    text = (
        f"`{command}`, jax {report['jax']}: {counted}; {_machine(rows)}. Where the load is above the machine's cores, "
        "times are too long."
    )
    return "\n".join([f"## {FORMS[name]}\n\n{text}\n", *learning(rows, name), *costs(rows, name)])


def page() -> str:
    """All of the page: a section for each result file."""
    found = {name: RESULTS / f"{name}.json" for name in FORMS}
    parts = [section(json.loads(path.read_text()), name) for name, path in found.items() if path.exists()]
    absent = [name for name, path in found.items() if not path.exists()]
    if "mixers" in absent:
        parts.append(
            "## Not measured\n\nThe whole form, all mixers with three seeds on four tasks and up to 16,384 tokens: "
            "hours on two cores, `python -m benchmarks.mixers`.\n"
        )
    return "\n".join([HEAD, *parts])


if __name__ == "__main__":
    PAGE.write_text(page())
