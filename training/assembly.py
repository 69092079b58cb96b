"""From a config to a task and a model: where a task is given what it needs of the model, and the model what the task says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

import tasks
import zoo


def _preprocess(config: ConfigDict) -> Any:
    return zoo.preprocess(config.model)


NEEDS: dict[str, Callable[[ConfigDict], Any]] = {"preprocess": _preprocess}
"""What a task may name in ``needs``, and how it is had from the config."""


def build(config: ConfigDict, weights: str = "") -> tuple[tasks.Task, nnx.Module]:
    """Makes the task and the model of ``config``.

    Args:
      config: all of the run.
      weights: a file or name to load, in place of ``config.weights``.

    Raises:
      ValueError: unknown names or options, near ones given; whatever is wrong with data or weights.
    """
    options = config.task.to_dict()
    name = options.pop("name")
    needs = {need: NEEDS[need](config) for need in getattr(tasks.lookup(name), "needs", ())}
    task = tasks.create(name, **options, **needs)
    weights = weights or config.weights
    given = {
        **task.model_options(),
        **config.model_options.to_dict(),
        **({"weights": weights} if weights else {}),
        **{option: True for option in ("remat", "scan") if config[option]},
    }
    model = zoo.create(config.model, rngs=nnx.Rngs(config.seed), dtype=config.dtype, param_dtype=config.param_dtype, **given)
    return task, model
