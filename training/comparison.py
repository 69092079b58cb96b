"""Mixers side by side: the same backbone, numbers of parameters, data, steps and learning rate; only the mixer differs.

    images   patches -> + positions -> blocks -> norm -> mean -> head        vit_nano_patch4_32, no class token
    tokens   embedding -> + positions -> blocks -> norm -> embedding^T       transformer_nano

Two blocks of a mixer with its default options and an MLP. The MLP is as wide as gives the model the number of
parameters of the one with plain attention; where a mixer alone has more, the whole model is narrower. Positions are a
learned table, the same for all. Nothing is tuned for one mixer.

``mixer-zoo compare`` and ``python -m benchmarks.mixers`` run what is here.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import functools
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import layers
import zoo
from layers.state import parameter_count
from suggestions import unknown
from training import contest
from training.contest import Contest, Contestant
from training.logging import duration, number
from zoo.commands import Command, deliberate
from zoo.creation import create_abstract

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Job = dict[str, Any]
Row = dict[str, Any]
FEATURES, DEPTH, HEADS = 64, 2, 2
STEP = 4 * HEADS
"""By how much a model gets narrower where a mixer alone has more parameters than there are to be."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task, the backbone for it, and the budget of a run.

    Attributes:
      about: in a line.
      model: the backbone, a name of ``zoo.list_models()``.
      options: of the backbone, those that the task specifies included.
      width: the backbone's options for an MLP of so many hidden features beside so many features.
      hidden: hidden features of the MLP beside plain attention.
      task: its name and options.
      figure: what is compared, of the test split.
      higher: whether more of it is better.
      steps, batch_size, learning_rate: of every run.
      input_shape: of one input.
    """

    about: str
    model: str
    options: Mapping[str, Any]
    width: Callable[[int, int], dict[str, Any]]
    hidden: int
    task: Mapping[str, Any]
    figure: str
    higher: bool
    steps: int
    batch_size: int
    learning_rate: float
    input_shape: tuple[int, ...]


def _tokens(about: str, vocab_size: int, length: int, task: Mapping[str, Any], **more: Any) -> Problem:
    """A problem of the causal backbone."""
    return Problem(
        about=about,
        model="transformer_nano",
        options={"vocab_size": vocab_size, "position": "learned", "max_length": length, "depth": DEPTH, "num_heads": HEADS},
        width=lambda features, hidden: {"features": features, "hidden": hidden},
        hidden=3 * FEATURES,
        task=task,
        input_shape=(length,),
        **{"figure": "accuracy", "higher": True, "learning_rate": 3e-3, **more},
    )  # fmt: skip


_SYNTHETIC = {"num_eval": 512}
PROBLEMS = {
    "digits": Problem(
        about="handwritten digits, 64 patches, 10 classes",
        model="vit_nano_patch4_32",
        options={"class_token": False, "pool": "average", "depth": DEPTH, "num_heads": HEADS, "num_classes": 10},
        # Half a feature more: the backbone rounds down.
        width=lambda features, hidden: {"features": features, "mlp_ratio": (hidden + 0.5) / features},
        hidden=4 * FEATURES,
        task={"name": "classification", "dataset": {"name": "digits"}, "augment": {"fit": "whole", "flip": 0.0}},
        figure="accuracy",
        higher=True,
        steps=800,
        batch_size=32,
        learning_rate=2e-3,
        input_shape=(32, 32, 3),
    ),
    "recall": _tokens(
        "multi-query associative recall, 8 pairs in 32 tokens of 64",
        64,
        32,
        {"name": "multi_query_recall", "length": 32, "test_length": 32, "pairs": 8, "vocab_size": 64, **_SYNTHETIC},
        steps=1000,
        batch_size=32,
    ),
    "copying": _tokens(
        "strings of 24 letters, copied",
        28,
        49,
        {"name": "copying", "length": 24, "test_length": 24, **_SYNTHETIC},
        steps=1000,
        batch_size=32,
    ),
    "bytes": _tokens(
        "Python's standard library, 256 bytes at a time",
        256,
        256,
        {"name": "text", "dataset": {"name": "stdlib"}, "sequence_length": 256},
        figure="bits_per_byte",
        higher=False,
        steps=400,
        batch_size=8,
    ),
}
"""What mixers are compared on."""


def problem(name: str) -> Problem:
    """The problem of a name.

    Raises:
      ValueError: there is none; near ones are given.
    """
    if name not in PROBLEMS:
        raise ValueError(unknown("task to compare on", name, PROBLEMS))
    return PROBLEMS[name]


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a mixer's model is.

    Attributes:
      features, hidden: of a token, and of the MLP.
      parameters: of the model.
      deviation: from the number of parameters with plain attention, as a part of it.
    """

    features: int
    hidden: int
    parameters: int
    deviation: float


@functools.cache
def _parameters(mixer: str, task: str, features: int, hidden: int) -> int:
    on = problem(task)
    return parameter_count(create_abstract(on.model, **on.options, **on.width(features, hidden), mixer=mixer))


@functools.cache
def _for_one_more(task: str, features: int) -> int:
    """Parameters that one more hidden feature of the MLPs takes, whatever the mixer."""
    few, more = (_parameters("attention", task, features, hidden) for hidden in (features, features + 1))
    return more - few


@functools.cache
def fitted(mixer: str, task: str) -> Size:
    """The size at which a mixer's model has as many parameters as the one with plain attention.

    Raises:
      ValueError: an unknown name, or a mixer that can't stand in the backbone; the message says why.
    """
    on = problem(task)
    layers.mixer_class(mixer)
    target = _parameters("attention", task, FEATURES, on.hidden)
    least: Size | None = None
    for features in range(FEATURES, 0, -STEP):
        narrow = features // 2  # an MLP narrower than this would be none
        try:
            few = _parameters(mixer, task, features, narrow)
        except ValueError:
            if features == FEATURES:
                raise
            continue  # a width that the mixer does not take
        each = _for_one_more(task, features)
        hidden = max(narrow, narrow + round((target - few) / each))
        found = few + (hidden - narrow) * each
        size = Size(features, hidden, found, found / target - 1)
        if least is None or abs(size.deviation) < abs(least.deviation):
            least = size
        if few <= target:
            break
    assert least is not None
    return least


def _options(mixer: str, task: str) -> dict[str, Any]:
    on, size = problem(task), fitted(mixer, task)
    return {**on.options, **on.width(size.features, size.hidden), "mixer": mixer}


@functools.cache
def _cost(mixer: str, task: str) -> zoo.Summary:
    on = problem(task)
    return zoo.summary(on.model, on.input_shape, batch_size=on.batch_size, show=False, **_options(mixer, task))


def check(names: Iterable[str]) -> None:
    """Raises unless all are mixers.

    Raises:
      ValueError: near names of the one that is none.
    """
    for name in names:
        if name not in layers.list_mixers() and name in zoo.list_models():
            raise ValueError(f"{name} is a model: what is compared are mixers; layers.list_mixers() lists them")
        layers.mixer_class(name)


def setting(task: str) -> str:
    """What stands for all that a problem specifies: another one where anything of it changes."""
    on = problem(task)
    said = [on.model, dict(on.options), on.width(FEATURES, on.hidden), dict(on.task), on.batch_size, on.learning_rate]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]


def jobs(names: Iterable[str], tasks: Iterable[str], seeds: Iterable[int], steps: int | None = None) -> list[Job]:
    """All runs, each mixer's first seed before any one's second. A job has all that its row depends on: "setting" stands
    for the backbone, the data and the budget.
    """
    names = list(names)
    return [
        {"task": task, "mixer": name, "seed": seed, "steps": steps or problem(task).steps, "setting": setting(task)}
        for seed in seeds
        for task in tasks
        for name in names
    ]


def run(job: Job) -> Row:
    """Trains a mixer on a task: its size, what it costs, its figures and learning curve.

    Returns:
      The row; of a mixer that can't stand in the backbone it has "refused", which says why.
    """
    on = problem(job["task"])
    try:
        size = fitted(job["mixer"], job["task"])
    except ValueError as error:
        if not deliberate(error):
            raise
        return {"refused": str(error)}
    options, cost = _options(job["mixer"], job["task"]), _cost(job["mixer"], job["task"])
    contestant = Contestant(job["mixer"], on.model, on.task, options)
    budget = Contest([contestant], on.steps, on.batch_size, on.learning_rate, (on.figure,), evaluations=5)
    found = contest.train(budget, contestant, job["seed"], job["steps"])
    kept = ("chance", "seconds", "step_seconds", "test", "validation")
    return {
        **dataclasses.asdict(size),
        "operations": cost.flops,
        "step_bytes": cost.step_bytes,
        "figure": found["test"][on.figure],
        **{name: found[name] for name in kept},
    }


class Results:
    """A file of rows, each written at once with its job, so that what was cut short goes on.

    Args:
      path: of the JSON file; made with the first row.
      about: what the file says of all rows.
      fresh: forget the rows that are there of jobs that are asked for.
    """

    def __init__(self, path: Path, about: Mapping[str, Any] | None = None, *, fresh: bool = False):
        self.path, self._about, self._fresh = path, dict(about or {}), fresh
        self.rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []

    def of(self, job: Job) -> Row | None:
        """The row of a job."""
        return next((row for row in self.rows if row["job"] == job), None)

    def add(self, job: Job, row: Row) -> Row:
        """Puts the row of a job in its place, and writes the file."""
        row = {"job": job, **row, "load_average": round(os.getloadavg()[0], 1)}
        self.rows = [*(other for other in self.rows if other["job"] != job), row]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({**self._about, "rows": self.rows}, indent=1) + "\n")
        part.replace(self.path)
        return row

    def make(
        self, wanted: Sequence[Job], do: Callable[[Job], Row], say: Callable[[str], None], until: float = float("inf")
    ) -> list[Row]:
        """The rows of jobs, in their order: those that the file lacks are made.

        Args:
          wanted: the jobs.
          do: makes a row.
          say: is called with a line about what was done and how much time is left.
          until: when no row is begun any more, by ``time.monotonic()``.
        """
        rows = {number: row for number, job in enumerate(wanted) if (row := self.of(job)) and not self._fresh}
        missing = [number for number in range(len(wanted)) if number not in rows]
        if rows:
            say(f"{len(rows)} of {len(wanted)} rows are in {self.path}")
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
        """All rows as a table beside the file, without learning curves."""
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
    """A job, for people."""
    shown = {name: value for name, value in job.items() if name not in ("setting", "steps")}
    return ", ".join(value if isinstance(value, str) else f"{name} {value:,}" for name, value in shown.items())


def outcome(row: Row) -> str:
    """What came of a job, for people."""
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
      figures: of its seeds; empty where there is none.
      row: of one run: sizes and costs are the same for all.
      why: why there is no figure, or one of fewer seeds.
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
    """The table of a task: a head, and a line for each mixer."""
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
    """:func:`columns`, aligned."""
    lines = columns(rows, task)
    full = [line for line in lines if any(line[2:])]
    widths = [max(len(line[i]) for line in full) for i in range(len(lines[0]))]
    widths[0] = max(len(line[0]) for line in lines)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def draw(rows: Sequence[Row], tasks: Sequence[str]) -> Figure:
    """A panel for each task: a point for the median of each mixer, a line from its least to its greatest seed, the best
    on top; a dotted line is chance.

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


@contextlib.contextmanager
def hushed() -> Any:
    """The training loop's own lines left out: a comparison has a line for each run."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="MIXER", help="names of layers.list_mixers()")
    parser.add_argument(
        "--task", required=True, help="; ".join(f"{name}: {one.about}" for name, one in PROBLEMS.items())
    )
    parser.add_argument("--seeds", default="0,1,2", help="default 0,1,2")
    parser.add_argument("--steps", type=int, help="of each run; default the task's")
    parser.add_argument("--output", type=Path, default=Path("comparison"), help="folder of TASK.json, .csv and .png")
    parser.add_argument("--again", action="store_true", help="also the runs that are in the folder already")
    parser.add_argument("--json", action="store_true", help="rows in place of the table")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def numbers(text: str, what: str) -> list[int]:
    """Whole numbers separated by commas.

    Raises:
      ValueError: it is something else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{what}={text}: whole numbers separated by commas, as 0,1,2") from None


def _compare(given: argparse.Namespace) -> None:
    on = problem(given.task)
    check(given.names)
    if given.steps is not None and given.steps < 1:
        raise ValueError(f"--steps={given.steps}: at least 1")
    wanted = jobs(given.names, [given.task], numbers(given.seeds, "seeds"), given.steps)
    for name in given.names:
        fitted(name, given.task)  # what can't be compared is said before anything is trained
    say: Callable[[str], None] = (lambda _: None) if given.quiet else functools.partial(print, file=sys.stderr)
    say(f"{on.about}: {on.model} with {', '.join(given.names)}; {wanted[0]['steps']} steps of {on.batch_size} each")

    def do(job: Job) -> Row:
        try:
            with hushed():
                return run(job)
        except Exception as error:  # a mixer that fails is a row that says so
            return {"fault": f"{type(error).__name__}: {error}"}

    results = Results(given.output / f"{given.task}.json", fresh=given.again)
    rows = results.make(wanted, do, say)
    print(json.dumps(rows, indent=1) if given.json else table(rows, given.task))
    files = [results.path, results.write_csv()]
    try:
        picture = draw(rows, [given.task])
    except ValueError as error:
        say(str(error))
    else:
        files.append(results.path.with_suffix(".png"))
        picture.savefig(files[-1], dpi=120)
    say(f"written: {', '.join(map(str, files))}")
    if failed := dict.fromkeys(row["job"]["mixer"] for row in rows if "figure" not in row):
        raise ValueError(f"{', '.join(failed)} failed; the rows of {results.path} say why")


COMPARE = Command("Compares mixers: one backbone, equal parameters, data and steps.", _arguments, _compare)
"""The command ``compare``."""
