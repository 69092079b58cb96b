"""The page of Long Range Arena, from what ``python -m benchmarks.long_range_arena`` wrote: ``python -m
docs.long_range_arena`` writes docs/long_range_arena.md.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.rows import PICTURES
from docs.catalogue import table
from docs.results import HOME
from training.logging import number
from training.problems import problem
from training.standings import standings

RESULTS = HOME / "benchmarks" / "results"
PAGE = HOME / "docs" / "long_range_arena.md"
FORMS = {
    "long_range_arena_paper": ("The paper's protocol", "--protocol=paper"),
    "long_range_arena": ("The small protocol", ""),
    "long_range_arena_quick": ("The quick form of the small protocol", "--quick"),
}
HEAD = """# Long Range Arena

Written by `python -m docs.long_range_arena` from the files that `python -m benchmarks.long_range_arena` writes under
`benchmarks/results`; not edited by hand. The benchmark is that of Y. Tay et al. (arXiv:2011.04006).

All mixers share one encoder, the same data, number of steps and learning rate; only the mixer differs, with its default
options, and the width of the MLP is chosen so that the number of parameters stays the same. Nothing is tuned for a
single mixer: a figure shows what this many steps teach, not what a mixer can reach. The quick form shows that
everything runs and what a step costs; its accuracy is that of a model that has hardly begun to learn.

The small Pathfinder is left out by default: the mixers that were tried on it are at chance, and plain attention is
after 1,500 steps too (`--task=pathfinder --mixers=attention --steps=1500`: 0.486).

`python train.py --config=configs/long_range_arena.py:PART,mixer=NAME` trains one by the authors' recipe. Published
accuracy of their Transformer, in percent: ListOps 36.37, text 64.27, retrieval 57.46, image 42.44, pathfinder 71.40.
"""


def lines_of(rows: list[dict[str, Any]], task: str) -> list[list[str]]:
    """A table line for each mixer, the best first."""
    lines = []
    for one in standings(rows, task):
        if not one.figures:
            lines.append([f"`{one.mixer}`", f"none: {' '.join(one.why.split())[:160]}", *[""] * 5])
            continue
        low, high, row = min(one.figures), max(one.figures), one.row
        speed = max(row["steps_per_second"] for row in rows if row["job"]["mixer"] == one.mixer and "figure" in row)
        spread = f" ({low:.3f} to {high:.3f})" if len(one.figures) > 1 else ""
        lines.append(
            [
                f"`{one.mixer}`", f"{one.median:.3f}{spread}", str(len(one.figures)), f"{row['parameters']:,}",
                f"{row['deviation']:+.1%}", number(speed), f"{row['peak_mib']:,}",
            ]
        )  # fmt: skip
    return lines


def section(report: dict[str, Any], name: str, platform: str) -> str:
    """The section of one form of the benchmark on one platform."""
    rows, (title, option) = report["rows"], FORMS[name]
    missing = report["rows_asked_for"] - len(rows)
    loads = [row["load_average"] for row in rows]
    counted = f"{len(rows)} rows were measured" + (f", {missing} of those requested were not" if missing > 0 else "")
    command = f"python -m benchmarks.long_range_arena {option}".rstrip()
    parts = [
        f"## {title}, {platform}\n",
        f"`{command}` on {report['cores']} cores and {report['device']}, jax {report['jax']}: {counted}. "
        f"Load average {min(loads):.1f} to {max(loads):.1f}: above the number of cores, "
        'steps are slower than on an idle machine; "steps per second" are those of the fastest seed.\n',
    ]
    if platform == "cpu":
        parts.append(f"![Accuracy of each mixer]({(PICTURES / f'{name}.svg').relative_to(PAGE.parent)})\n")
    head = ["mixer", "accuracy", "seeds", "parameters", "over attention's", "steps per second", "peak memory, MiB"]
    for task in dict.fromkeys(row["job"]["task"] for row in rows):
        on, own = problem(task), [row for row in rows if row["job"]["task"] == task]
        steps = " or ".join(map(str, sorted({row["job"]["steps"] for row in own})))
        chance = next((f" Chance is {row['chance']:.3f}." for row in own if row.get("chance")), "")
        about = f"**{task}**: {on.about}; {steps} steps of {on.batch_size} at {on.learning_rate:g}.{chance}"
        parts.append(f"{about}\n\n{table(head, lines_of(own, task))}")
    return "\n".join(parts)


def page() -> str:
    """All of the page: a section for each result file."""
    found = [(name, path) for name in FORMS for path in sorted(RESULTS.glob(f"*/{name}.json"))]
    parts = [section(json.loads(path.read_text()), name, path.parent.name) for name, path in found]
    absent = [FORMS[name] for name in FORMS if name not in {name for name, _ in found}]
    if absent:
        commands = [(title, f"python -m benchmarks.long_range_arena {option}".rstrip()) for title, option in absent]
        listed = "\n".join(f"- {title}: `{command}`" for title, command in commands)
        parts.append(f"## Not measured\n\n{listed}\n")
    return "\n".join([HEAD, *parts])


if __name__ == "__main__":
    PAGE.write_text(page())
