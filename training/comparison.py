"""Compares mixers: the same backbone, parameter count, data, steps and learning rate; only the mixer differs.

The backbones are those of :mod:`training.problems`. The width of the MLP is chosen so that the model has as many
parameters as the one with plain attention; where a mixer alone has more, the whole model becomes narrower. Nothing is
tuned for a single mixer.

``mixer-zoo compare`` and ``python -m benchmarks.mixers`` use this module.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import layers
import zoo
from layers.state import parameter_count
from training import contest
from training.contest import Contest, Contestant
from training.problems import HEADS, PROBLEMS, problem
from training.standings import Job, Results, Row, draw, table
from zoo.commands import Command, deliberate
from zoo.creation import create_abstract

STEP = 4 * HEADS
"""Step by which the model's width is reduced where a mixer alone has too many parameters."""
MOST = 0.1
"""How many more parameters than the model with attention, relative to it, a model may have that can't have fewer."""


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a mixer's model.

    Attributes:
      features, hidden: features of a token, and hidden features of the MLP.
      parameters: parameters of the model.
      deviation: relative difference to the number of parameters with plain attention.
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
    """Parameters that one more hidden feature of the MLPs adds, whatever the mixer."""
    few, more = (_parameters("attention", task, features, hidden) for hidden in (features, features + 1))
    return more - few


@functools.cache
def fitted(mixer: str, task: str) -> Size:
    """The size at which a mixer's model has as many parameters as the one with plain attention, as nearly as possible.

    Raises:
      ValueError: an unknown name, a mixer that does not work in the backbone, or one with too many parameters at any
        width; the message says why.
    """
    on = problem(task)
    layers.mixer_class(mixer)
    target = _parameters("attention", task, on.features, on.hidden)
    least: Size | None = None
    for features in range(on.features, 0, -STEP):
        narrow = features // 2  # a narrower MLP would hardly be one
        try:
            few = _parameters(mixer, task, features, narrow)
        except ValueError:
            if features == on.features:
                raise
            continue  # a width that the mixer does not accept
        each = _for_one_more(task, features)
        hidden = max(narrow, narrow + round((target - few) / each))
        found = few + (hidden - narrow) * each
        size = Size(features, hidden, found, found / target - 1)
        if least is None or abs(size.deviation) < abs(least.deviation):
            least = size
        if few <= target:
            break
    assert least is not None
    if least.deviation > MOST:
        raise ValueError(
            f"the model with {mixer} has {least.parameters:,} parameters however narrow it is, and the one with plain "
            f"attention {target:,}: compare it with smaller options, as a mixer of your own registered with them"
        )
    return least


def _options(mixer: str, task: str) -> dict[str, Any]:
    on, size = problem(task), fitted(mixer, task)
    return {**on.options, **on.width(size.features, size.hidden), "mixer": mixer}


@functools.cache
def _cost(mixer: str, task: str) -> zoo.Summary:
    on = problem(task)
    return zoo.summary(on.model, on.input_shape, batch_size=on.batch_size, show=False, **_options(mixer, task))


def check(names: Iterable[str]) -> None:
    """Checks that all names are mixers.

    Raises:
      ValueError: a name is not a mixer; the message suggests similar ones.
    """
    for name in names:
        if name not in layers.list_mixers() and name in zoo.list_models():
            raise ValueError(f"{name} is a model, and this compares mixers; layers.list_mixers() lists them")
        layers.mixer_class(name)


def setting(task: str) -> str:
    """A hash of everything that a problem specifies: it changes whenever any of it does."""
    on = problem(task)
    width = on.width(on.features, on.hidden)
    said = [on.model, dict(on.options), width, dict(on.task), on.batch_size, on.learning_rate]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]


def jobs(names: Iterable[str], tasks: Iterable[str], seeds: Iterable[int], steps: int | None = None) -> list[Job]:
    """All runs, the first seed of every mixer before the second of any. A job holds everything that its row depends on:
    "setting" is a hash of the backbone, the data and the budget.
    """
    names = list(names)
    return [
        {"task": task, "mixer": name, "seed": seed, "steps": steps or problem(task).steps, "setting": setting(task)}
        for seed in seeds
        for task in tasks
        for name in names
    ]


def run(job: Job) -> Row:
    """Trains a mixer on a task and measures its size, cost, figures and learning curve.

    Returns:
      The row; for a mixer that does not work in the backbone it has only "refused", the reason.
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
    recipe = None if on.recipe is None else on.recipe + (f",path={job['path']}" if job.get("path") else "")
    sizes = (on.steps, on.batch_size, on.learning_rate)
    budget = Contest([contestant], *sizes, (on.figure,), evaluations=5, recipe=recipe)
    found = contest.train(budget, contestant, job["seed"], job["steps"])
    kept = ("chance", "seconds", "step_seconds", "peak_mib", "test", "validation")
    return {
        **dataclasses.asdict(size),
        "operations": cost.flops,
        "step_bytes": cost.step_bytes,
        "figure": found["test"][on.figure],
        **{name: found[name] for name in kept},
    }


@contextlib.contextmanager
def hushed() -> Any:
    """Suppresses the lines that the training loop prints: a comparison prints one line for each run."""
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
      ValueError: ``text`` is something else; ``what`` names its flag.
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
        fitted(name, given.task)  # fails for a mixer that can't be compared before anything is trained
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
