"""Runs for comparisons: one contestant and one seed give one row of figures, by the one training loop.

The claims under benchmarks/claims, ``python -m benchmarks.mixers`` and ``mixer-zoo compare`` are built on these.
"""

from __future__ import annotations

import dataclasses
import json
import runpy
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flax import nnx
    from ml_collections import ConfigDict

    from training.loop import Result

HOME = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One model on one task.

    Attributes:
      label: its name in the table.
      model: a name of ``zoo.list_models()``.
      task: the task's name and options.
      options: overrides for ``zoo.create``.
      settings: fields of the run's config that replace the contest's.
      before: a task, by name and options, on which the model is trained first with the same settings; its body is kept,
        with a new head. It takes the fraction ``before_part`` of the steps, so that all runs have equally many.
    """

    label: str
    model: str
    task: Mapping[str, Any]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    before: Mapping[str, Any] | None = None
    before_part: float = 0.5


@dataclasses.dataclass(frozen=True)
class Contest:
    """The runs of a comparison, and the figures shown.

    Attributes:
      contestants: the rows.
      steps, batch_size, learning_rate, evaluations: settings of every run; ``evaluations`` is how often the validation
        split is evaluated during training.
      figures: names of the figures shown, of the test split or of ``measure``.
      measure: computes further figures from a trained model and its contestant.
      recipe: a config file and, after a colon, its argument: its run is used unchanged except for its length and the
        contestants' options.
    """

    contestants: Sequence[Contestant]
    steps: int
    batch_size: int
    learning_rate: float
    figures: Sequence[str]
    evaluations: int = 10
    measure: Callable[[nnx.Module, Contestant], dict[str, float]] | None = None
    recipe: str | None = None


def config_of(contest: Contest, contestant: Contestant, seed: int, steps: int) -> ConfigDict:
    """The config of one run, from configs/, whose files are data and therefore executed, not imported."""
    from ml_collections import ConfigDict

    if contest.recipe is not None:
        file, _, argument = contest.recipe.partition(":")
        config = runpy.run_path(str(HOME / file))["get_config"](argument)
        config.update({"seed": seed, "train_for": f"{steps} steps", "save_every": ""})
        config.update({"eval_every": f"{max(steps // contest.evaluations, 1)} steps", "keep": 1, **contestant.settings})
        config.model_options = ConfigDict({**config.model_options, **contestant.options})
        return config
    config = runpy.run_path(str(HOME / "configs" / "common.py"))["run"]()
    config.update(
        {
            "seed": seed,
            "model": contestant.model,
            "batch_size": contest.batch_size,
            "train_for": f"{steps} steps",
            "save_every": "",
        }
    )
    config.update(
        {"eval_every": f"{max(steps // contest.evaluations, 1)} steps", "log_every": max(steps // 100, 1), "keep": 1}
    )
    config.optimizer.update({"learning_rate": contest.learning_rate, "weight_decay": 0.0, "clip_norm": 1.0})
    config.schedule.update({"warmup": f"{steps // 20} steps", "final": 0.1})
    config.update(dict(contestant.settings))
    config.model_options = ConfigDict(dict(contestant.options))
    config.task = ConfigDict(dict(contestant.task))
    return config


def train(contest: Contest, contestant: Contestant, seed: int, steps: int) -> Row:
    """Trains one contestant with one seed and returns its row."""
    from layers.state import parameter_count
    from training import assembly, loop

    first = round(steps * contestant.before_part) if contestant.before else 0
    config = config_of(contest, contestant, seed, steps - first)
    with tempfile.TemporaryDirectory() as directory:
        seconds = 0.0
        if contestant.before:
            config.weights = str(Path(directory) / "before")
            seconds = _train_before(contest, contestant, seed, first, Path(config.weights)).seconds
        task, model = assembly.build(config)
        parameters = parameter_count(model)
        result = _finished(loop.train(config, model, task, Path(directory) / "run"), contestant, seed)
        seconds += result.seconds
        lines = [json.loads(line) for line in (Path(directory) / "run" / "metrics.jsonl").read_text().splitlines()]
    figures = dict(result.figures["raw"])
    if contest.measure is not None:
        figures |= contest.measure(model, contestant)
    curve = [
        {name: value for name, value in line.items() if name != "split"} | {"step": first + line["step"]}
        for line in lines
        if line["split"] == "validation"
    ]
    return {
        "label": contestant.label, "model": contestant.model, "options": dict(contestant.options),
        "task": config.task.to_dict(), **({"before": dict(contestant.before)} if contestant.before else {}),
        "seed": seed, "parameters": parameters, "steps": first + result.step, "seconds": round(seconds, 1),
        "step_seconds": statistics.median(line["step_seconds"] for line in lines if line["split"] == "train"),
        "peak_mib": round(max(line["peak_memory_mib"] for line in lines if line["split"] == "train")),
        "chance": getattr(task, "chance", None), "test": figures, "validation": curve,
    }  # fmt: skip


def _train_before(contest: Contest, contestant: Contestant, seed: int, steps: int, workdir: Path) -> Result:
    """Trains a contestant's model on the task ``before``, and leaves its weights in ``workdir``."""
    from training import assembly, loop

    assert contestant.before is not None
    config = config_of(contest, dataclasses.replace(contestant, task=contestant.before), seed, steps)
    task, model = assembly.build(config)
    record = assembly.record(config, task, model)
    return _finished(loop.train(config, model, task, workdir, record=record), contestant, seed)


def _finished(result: Result, contestant: Contestant, seed: int) -> Result:
    """Returns the result, or ends the program if the run was stopped."""
    if not result.finished:
        raise SystemExit(
            f"stopped in {contestant.label!r}, seed {seed}, after step {result.step} of {result.total}; the runs "
            f"before it are kept"
        )
    return result
