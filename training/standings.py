"""The rows of a comparison of mixers: stored in a file as they are produced, ranked, printed as a table and plotted.

A row is the result of one job (a mixer, a task and a seed): figures, sizes and costs, or the reason why there are none.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.logging import duration, number
from training.problems import problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Job = dict[str, Any]
Row = dict[str, Any]


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Results:
    """A file of rows, each written immediately with its job, so that an interrupted comparison can be resumed.

    Args:
      path: the JSON file; created with the first row.
      about: fields of the file that describe all rows.
      fresh: produce the rows of the requested jobs again, even if the file has them.
    """

    def __init__(self, path: Path, about: Mapping[str, Any] | None = None, *, fresh: bool = False):
        self.path, self._about, self._fresh = path, dict(about or {}), fresh
        self.rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []

    def of(self, job: Job) -> Row | None:
        """The row of a job; None where there is none."""
        return next((row for row in self.rows if row["job"] == job), None)

    def add(self, job: Job, row: Row) -> Row:
        """Adds or replaces the row of a job, and writes the file."""
        row = {"job": job, **row, "cores": cores(), "load_average": round(os.getloadavg()[0], 1)}
        self.rows = [*(other for other in self.rows if other["job"] != job), row]
        self._write()
        return row

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({**self._about, "rows": self.rows}, indent=1) + "\n")
        part.replace(self.path)

    def make(
        self, wanted: Sequence[Job], do: Callable[[Job], Row], say: Callable[[str], None], until: float = float("inf")
    ) -> list[Row]:
        """Returns the rows of jobs, in their order, and produces those that the file lacks.

        Args:
          wanted: the jobs.
          do: computes the row of a job.
          say: called with a line of progress after each row.
          until: time, by ``time.monotonic()``, after which no further row is started.
        """
        rows = {number: row for number, job in enumerate(wanted) if (row := self.of(job)) and not self._fresh}
        missing = [number for number in range(len(wanted)) if number not in rows]
        if rows:
            say(f"{len(rows)} of {len(wanted)} rows are in {self.path}")
            self._write()  # the description of all rows may have changed
        since = time.monotonic()
        for count, place in enumerate(missing, 1):
            if time.monotonic() > until:
                break
            row = rows[place] = self.add(wanted[place], do(wanted[place]))
            spent = time.monotonic() - since
            left = f", about {duration(spent / count * (len(missing) - count))} left" if count < len(missing) else ""
            say(f"{label(wanted[place])}: {outcome(row)}; {len(rows)} of {len(wanted)} rows{left}")
        return [rows[number] for number in sorted(rows)]

    def write_csv(self) -> Path:
        """Writes all rows, without learning curves, to a .csv file beside the JSON file; returns its path."""
        flat = []
        for row in self.rows:
            single = {name: value for name, value in row.items() if not isinstance(value, dict | list)}
            flat.append({**row["job"], **single, **{f"test_{n}": value for n, value in row.get("test", {}).items()}})
        path = self.path.with_suffix(".csv")
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(flat)
        return path


def label(job: Job) -> str:
    """A job in readable form."""
    shown = {name: value for name, value in job.items() if name not in ("setting", "steps")}
    return ", ".join(value if isinstance(value, str) else f"{name} {value:,}" for name, value in shown.items())


def outcome(row: Row) -> str:
    """The result of a job in readable form."""
    for what in ("refused", "fault"):
        if what in row:
            return f"{what}, {' '.join(str(row[what]).split())[:200]}"
    if "test" in row:
        return f"{problem(row['job']['task']).figure} {number(row['figure'])} in {duration(row['seconds'])}"
    return f"{number(row['milliseconds'])} ms, {number(row['mib'])} MiB"


@dataclasses.dataclass(frozen=True)
class Standing:
    """A mixer's runs on a task.

    Attributes:
      mixer: its name.
      figures: the figures of its seeds; empty where there are none.
      row: the row of one run; sizes and costs are the same for all.
      why: why there is no figure, or fewer figures than seeds.
    """

    mixer: str
    figures: tuple[float, ...]
    row: Row
    why: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.figures)


def standings(rows: Sequence[Row], task: str) -> list[Standing]:
    """The mixers of a task, the best first, those without a figure last."""
    found = []
    for mixer in dict.fromkeys(row["job"]["mixer"] for row in rows if row["job"].get("task") == task):
        own = [row for row in rows if row["job"].get("task") == task and row["job"]["mixer"] == mixer]
        good = [row for row in own if "figure" in row]
        bad = next((str(row.get("refused") or row["fault"]) for row in own if "figure" not in row), "")
        found.append(Standing(mixer, tuple(row["figure"] for row in good), (good or own)[0], bad))
    sign = -1 if problem(task).higher else 1
    return sorted(found, key=lambda one: (not one.figures, sign * one.median if one.figures else 0.0, one.mixer))


def columns(rows: Sequence[Row], task: str) -> list[list[str]]:
    """The cells of a task's table: a header and a line for each mixer."""
    figure = problem(task).figure.replace("_", " ")
    lines = [["mixer", figure, "seeds", "parameters", "over attention's", "width, MLP", "MFLOP", "step, ms"]]
    for one in standings(rows, task):
        if not one.figures:
            lines.append([one.mixer, f"none: {' '.join(one.why.split())[:160]}", *[""] * 6])
            continue
        low, high = min(one.figures), max(one.figures)
        spread = f" ({low:.3f} to {high:.3f})" if len(one.figures) > 1 else ""
        row = one.row
        lines.append(
            [
                one.mixer,
                f"{one.median:.3f}{spread}",
                str(len(one.figures)),
                f"{row['parameters']:,}",
                f"{row['deviation']:+.1%}",
                f"{row['features']}, {row['hidden']}",
                f"{row['operations'] / 1e6:.1f}",
                f"{1e3 * row['step_seconds']:.0f}",
            ]
        )
    return lines


def table(rows: Sequence[Row], task: str) -> str:
    """The table of :func:`columns` as aligned text."""
    lines = columns(rows, task)
    full = [line for line in lines if any(line[2:])]
    widths = [max(len(line[i]) for line in full) for i in range(len(lines[0]))]
    widths[0] = max(len(line[0]) for line in lines)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def draw(rows: Sequence[Row], tasks: Sequence[str]) -> Figure:
    """Plots a panel for each task, the best mixer on top: a point at the median of each mixer's seeds, a line from the
    smallest to the largest figure, and a dotted line at chance level.

    Raises:
      ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot, which would look for a display
    except ImportError as error:
        raise ValueError("pictures need matplotlib: python -m pip install matplotlib") from error
    found = {task: standings(rows, task) for task in tasks}
    tallest = max(len(standing) for standing in found.values())
    figure = Figure(figsize=(5.5 * len(tasks), 1.4 + 0.28 * tallest), layout="constrained")
    for axes, (task, standing) in zip(figure.subplots(1, len(tasks), squeeze=False)[0], found.items(), strict=True):
        on, known = problem(task), [one for one in standing if one.figures]
        places = list(range(len(standing)))
        for place, one in zip(places, standing, strict=True):
            if one.figures:
                axes.plot([min(one.figures), max(one.figures)], [place] * 2, color="C0", alpha=0.5)
                axes.plot([one.median], [place], "o", color="C0")
            else:
                axes.annotate("no figure", (0.02, place), xycoords=("axes fraction", "data"), color="gray", va="center")
        chance = known[0].row.get("chance") if known else None
        if chance is not None:
            axes.axvline(chance, color="gray", linestyle=":", label="chance")
            axes.legend(loc="lower right")
        axes.set_yticks(places, [one.mixer for one in standing])
        axes.set_ylim(len(standing) - 0.5, -0.5)
        if on.figure == "accuracy":
            axes.set_xlim(0, 1.02)
        better = "more" if on.higher else "less"
        axes.set(title=f"{task}: {on.about}", xlabel=f"{on.figure.replace('_', ' ')}, {better} is better")
        axes.grid(alpha=0.3)
    return figure
