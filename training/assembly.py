"""From a config to a task and a model: passes the task what it needs from the model, and the model what the task
specifies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

import tasks
import zoo
from training import sharding
from training.processes import leads
from zoo.sources import run_record, run_tokenizer

NEEDS: dict[str, Callable[[ConfigDict, Mapping[str, Any]], Any]] = {
    "preprocess": lambda config, kept: zoo.preprocess(config.model),
    "class_names": lambda config, kept: kept.get("class_names"),
}
"""What a task may name in ``needs``, and how it is had from the config and the run's record, which is empty for a new run."""


def record(config: ConfigDict, task: tasks.Task) -> dict[str, Any]:
    """What ``zoo.create(weights=WORKDIR)`` needs of a run: the model, its options, class names and preprocessing."""
    options = {**task.model_options(), **config.model_options.to_dict()}
    kept: dict[str, Any] = {"model": config.model, "options": options}
    if names := getattr(task, "class_names", None):
        kept["class_names"] = list(names)
    if (prepared := getattr(task, "preprocess", None)) is not None:
        kept["preprocess"] = dict(prepared)
    return kept


def build(config: ConfigDict, weights: str | None = None, run: str | Path | None = None) -> tuple[tasks.Task, nnx.Module]:
    """Makes the task and the model of ``config``, with adapters if it specifies them.

    Args:
      config: all of the run.
      weights: a file or name to load, in place of ``config.weights``; "" for none, where a checkpoint follows.
      run: the working directory of the run that the model comes from or that the task continues: labels are its labels.

    Raises:
      ValueError: unknown names or options, near ones given; invalid data or weights.
    """
    options = config.task.to_dict()
    name = options.pop("name")
    kept = run_record(run) or {}
    if "tokenizer" in options and (own := (run_tokenizer(run) or {}).get("path")):
        options["tokenizer"] = own
    needs = {need: NEEDS[need](config, kept) for need in getattr(tasks.lookup(name), "needs", ())}
    task = tasks.create(name, **options, **needs)
    if (report := getattr(task, "report", "")) and leads():
        print(report, file=sys.stderr)
    weights = config.weights if weights is None else weights
    given = {
        **task.model_options(),
        **config.model_options.to_dict(),
        **({"weights": weights} if weights else {}),
        **{option: True for option in ("remat", "scan") if config[option]},
    }
    places = sharding.of_model(sharding.create_mesh(config.mesh))
    model = zoo.create(config.model, rngs=nnx.Rngs(config.seed), dtype=config.dtype, param_dtype=config.param_dtype, shardings=places, **given)
    lora = config.get("lora")
    if lora and lora.rank:
        zoo.add_lora(model, rank=lora.rank, alpha=lora.alpha or None, patterns=lora.patterns, rngs=nnx.Rngs(config.seed + 1))
    return task, model
