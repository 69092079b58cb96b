"""What the claims share: train each contestant with each seed by the one training loop, print a table, write JSON.

A claim is a module with a docstring that states it, ``contest(quick)`` and ``verdict(rows)``. ``PAPER``, where there is
one, names the rows of the roster that the claim checks: a tuple, or a mapping from each row to the part of the verdict
that is about it, a function of the rows. The figure that ``draw(rows)`` returns, where there is one, is shown in
docs/results.md beside the table. Running it

    python -m benchmarks.claims.NAME [--quick] [--seeds=0,1,2] [--steps=N] [--resume] [--output=DIR]

writes DIR/NAME.json (default benchmarks/results/<platform>/claims): every figure of every run with its learning curve,
and whether the claim holds. ``--quick`` only shows that everything runs; ``--resume`` continues a file that was cut
short, or adds seeds to it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.contest import HOME, Contest, Contestant, Row, config_of, train

if TYPE_CHECKING:
    from flax import nnx

__all__ = [
    "HOME",
    "Contest",
    "Contestant",
    "Row",
    "figures_of",
    "main",
    "medians",
    "of_digits",
    "sequences",
    "shown",
    "steps_to",
    "task_of",
]


def shown(rows: Sequence[Row], figures: Sequence[str]) -> str:
    """The table: for each contestant the median of its figures over seeds, with the extremes."""
    from training.logging import table

    lines = []
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label]
        cells = [f"{own[0]['parameters']:>9,} parameters"]
        for name in figures:
            values = [row["test"][name] for row in own if name in row["test"]]
            if values:
                cells.append(f"{name} {statistics.median(values):.4f} [{min(values):.4f}, {max(values):.4f}]")
        if own[0]["chance"] is not None:
            cells.append(f"chance {own[0]['chance']:.4f}")
        lines.append((label, "   ".join([*cells, f"{statistics.median(row['seconds'] for row in own):.0f} s"])))
    return table(lines)


def medians(rows: Sequence[Row], figure: str) -> dict[str, float]:
    """The median of a figure over seeds, by label."""
    return {
        label: statistics.median(row["test"][figure] for row in rows if row["label"] == label)
        for label in dict.fromkeys(row["label"] for row in rows if figure in row["test"])
    }


def steps_to(rows: Sequence[Row], label: str, figure: str, level: float) -> float:
    """The step at which the validation figure first reached ``level``, the median over seeds; infinite where it never
    did.
    """
    reached = [
        next((point["step"] for point in row["validation"] if point[figure] >= level), float("inf"))
        for row in rows
        if row["label"] == label
    ]
    return statistics.median(reached)


def task_of(contestant: Contestant, **other: Any) -> Any:
    """The contestant's task, with ``other`` options in place of its own."""
    import tasks

    options = {**contestant.task, **other}
    return tasks.create(options.pop("name"), **options)


def sequences(task: Any, count: int = 64) -> np.ndarray:
    """The tokens of the first validation sequences of a task, (count, length); fewer if it has fewer."""
    examples = task.examples("validation")
    return np.stack([examples.get(index, None)["tokens"] for index in range(min(count, len(examples)))])


def figures_of(model: nnx.Module, contestant: Contestant, **other: Any) -> dict[str, float]:
    """The figures on the test split of the contestant's task, with ``other`` options in place of its own, such as
    another length.
    """
    from flax import nnx

    from layers.module import Statistic
    from layers.state import flatten
    from training.evaluation import Evaluator
    from training.sharding import create_mesh
    from training.step import Skeleton

    task = task_of(contestant, **other)
    evaluate = Evaluator(Skeleton(model), task, create_mesh({"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1}), 32, 0)
    return evaluate(flatten(model, nnx.Param) | flatten(model, Statistic), "test").figures


def of_digits(
    kinds: Mapping[str, Mapping[str, Any]],
    *,
    quick: bool,
    steps: int,
    warmup: int,
    figures: Sequence[str],
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    model: str = "vit_nano_patch4_32",
    recipe: str = "configs/vit.py",
    train: int | None = None,
    measure: Callable[[nnx.Module, Contestant], dict[str, float]] | None = None,
) -> Contest:
    """A contest of classifiers of the digits, by a shortened recipe of configs/.

    Args:
      kinds: options of the model, by label.
      quick: train for four steps only.
      steps, warmup: length of each run in steps, and how many of them raise the learning rate.
      train: number of images to train on; None for all.
      figures, batch_size, learning_rate, recipe, measure: as in :class:`Contest`.
      model: name of the model, in place of the recipe's.
    """
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "optimizer": {"learning_rate": learning_rate},
        "schedule": {"warmup": f"{1 if quick else warmup} steps"},
        **({} if train is None else {"task": {"dataset": {"train": train}}}),
    }
    task = {"name": "classification", "dataset": "digits"}
    return Contest(
        contestants=[Contestant(label, model, task, options, settings) for label, options in kinds.items()],
        steps=4 if quick else steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        evaluations=2 if quick else 5,
        figures=figures,
        measure=measure,
        recipe=recipe,
    )


def main(
    name: str,
    claim: str,
    contest: Callable[[bool], Contest],
    verdict: Callable[[Sequence[Row]], bool],
    arguments: list[str] | None = None,
) -> None:
    """Runs the command of a claim.

    Args:
      name: of the JSON file.
      claim: what is to be shown, the module's docstring.
      contest: makes the contest, given whether it is the quick form.
      verdict: whether the rows show it.
      arguments: of the command line; None for those of the process.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.claims.{name}", description=claim)
    parser.add_argument("--quick", action="store_true", help="tiny, one seed: shows only that everything runs")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, help="of each run")
    parser.add_argument("--resume", action="store_true", help="keep the runs that the file has with the same settings")
    parser.add_argument("--only", help="contestants whose label contains this")
    parser.add_argument("--output", type=Path, help="folder; default benchmarks/results/<platform>/claims")
    given = parser.parse_args(arguments)
    what = contest(given.quick)
    steps = given.steps or what.steps
    contestants = [c for c in what.contestants if not given.only or given.only in c.label]
    if not contestants:
        parser.error(f"--only={given.only}: the contestants are {', '.join(c.label for c in what.contestants)}")
    import jax

    folder = given.output or HOME / "benchmarks" / "results" / jax.default_backend() / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    kept: list[Row] = json.loads(path.read_text())["rows"] if given.resume and path.exists() else []
    rows = [row for contestant in what.contestants for row in kept if _is_of(row, what, contestant, steps)]
    order = [contestant.label for contestant in what.contestants]
    for contestant in contestants:
        for seed in [0] if given.quick else [int(seed) for seed in given.seeds.split(",")]:
            if (contestant.label, seed) in [(row["label"], row["seed"]) for row in rows]:
                continue
            rows.append(train(what, contestant, seed, steps))
            rows.sort(key=lambda row: (order.index(row["label"]), row["seed"]))
            # Written after each run: a claim that is cut short keeps what it has measured.
            _write(path, _report(name, claim, what, given.quick, rows, verdict))
    _write(path, _report(name, claim, what, given.quick, rows, verdict))
    print(shown(rows, what.figures))
    report = json.loads(path.read_text())
    outcome = {True: "holds", False: "does NOT hold here", None: "not judged"}[report["holds"]]
    fewest = min(map(len, report["seeds"].values()))
    print(
        f"{claim.strip().partition(chr(10))[0]}\n{outcome}, by {fewest} seed{'s' if fewest != 1 else ''} or more of "
        f"each; {path}"
    )


def _write(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=1) + "\n")


def _is_of(row: Row, contest: Contest, contestant: Contestant, steps: int) -> bool:
    """Whether ``row`` is a run of this contestant with the settings it would have now."""
    config = config_of(contest, contestant, row["seed"], steps)
    now = {
        "label": contestant.label,
        "model": contestant.model,
        "options": dict(contestant.options),
        "task": config.task.to_dict(),
        "steps": steps,
        **({"before": dict(contestant.before)} if contestant.before else {}),
    }
    return {name: row.get(name) for name in now} == json.loads(json.dumps(now))


def _report(
    name: str, claim: str, contest: Contest, quick: bool, rows: list[Row], verdict: Callable[[Sequence[Row]], bool]
) -> dict[str, Any]:
    import jax

    complete = not quick and {row["label"] for row in rows} == {c.label for c in contest.contestants}
    device = jax.devices()[0]
    return {
        "name": name,
        "claim": " ".join(claim.split()),
        "holds": bool(verdict(rows)) if complete else None,
        "seeds": {
            label: [row["seed"] for row in rows if row["label"] == label]
            for label in dict.fromkeys(row["label"] for row in rows)
        },
        "quick": quick,
        "batch_size": contest.batch_size,
        "learning_rate": contest.learning_rate,
        "device": device.device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "rows": rows,
    }
