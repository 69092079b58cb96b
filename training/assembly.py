"""From a config to a task and a model: passes the task what it needs from the model, and the model what the task
specifies.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import tasks
import zoo
from layers.rematerialization import NOTHING, policy
from training import sharding
from training.processes import leads
from zoo.generation import written
from zoo.sources import run_record, run_tokenizer

NEEDS: dict[str, Callable[[ConfigDict, Mapping[str, Any]], Any]] = {
    "preprocess": lambda config, kept: preprocess(config),
    "class_names": lambda config, kept: kept.get("class_names"),
    "make_teacher": lambda config, kept: make_teacher,
    "start_token": lambda config, kept: start_token(config.model),
    "source_start": lambda config, kept: getattr(zoo.variant(config.model).config, "source_start", None),
    "write": lambda config, kept: written,
    "end_position": lambda config, kept: end_position(config.model),
}
"""What a task may name in ``needs``, each with the function that computes it from the config and the run's record
(empty for a new run).
"""


def preprocess(config: ConfigDict) -> zoo.Preprocess:
    """The preprocessing of the config's model, with the image size of its options."""
    found = zoo.preprocess(config.model)
    size = config.model_options.get("image_size")
    return found if size is None else dataclasses.replace(found, image_size=size)


def start_token(model: str) -> int:
    """The token that a model's decoder reads first.

    Raises:
      ValueError: the model is no encoder-decoder.
    """
    found = getattr(zoo.variant(model).config, "start_token", None)
    if found is None:
        raise ValueError(f"{model} reads no source: pairs of sources and targets are for encoder-decoders, as t5_nano")
    return int(found)


def end_position(model: str) -> int:
    """The position that ends the output of a pointer network.

    Raises:
      ValueError: the model does not point at its input.
    """
    found = getattr(zoo.variant(model).build, "end_position", None)
    if found is None:
        raise ValueError(
            f"{model} does not point at its input: points are for pointer networks, as pointer_network_nano"
        )
    return int(found)


def make_teacher(teacher: Mapping[str, Any], class_names: Sequence[str]) -> Callable[[jax.Array], jax.Array]:
    """Makes the teacher of a distillation: a function from images (batch, height, width, channels) with values from 0
    to 1 to logits (batch, classes) of ``class_names``.

    Args:
      teacher: arguments of ``zoo.create``; empty strings are ignored.
      class_names: the classes, in the order of the logits.

    Raises:
      ValueError: the model lacks some of these classes.
    """
    model: Any = zoo.create(**{name: value for name, value in teacher.items() if value != ""})
    own, preprocess = model.class_names, zoo.preprocess(model)
    if own is None and model.config.num_classes != len(class_names):
        raise ValueError(
            f"the teacher has {model.config.num_classes} classes, and the task {len(class_names)}: give the working "
            f"directory of a run"
        )
    if missing := sorted(set(class_names) - set(class_names if own is None else own)):
        raise ValueError(f"the teacher does not know the classes {', '.join(missing[:5])}: train it on the same data")
    order = np.arange(len(class_names)) if own is None else np.asarray([own.index(name) for name in class_names])
    mean, std = np.asarray(preprocess.mean, np.float32), np.asarray(preprocess.std, np.float32)
    graphdef, state = nnx.split(model)
    return lambda images: nnx.merge(graphdef, state)((images - mean) / std)[:, order]


def record(config: ConfigDict, task: tasks.Task, model: nnx.Module | None = None) -> dict[str, Any]:
    """What ``zoo.create(weights=WORKDIR)`` needs to know of a run: the model, its options, class names and
    preprocessing; and the parts beyond its options that ``model`` got from the weights it started from.
    """
    options = {**task.model_options(), **config.model_options.to_dict()}
    kept: dict[str, Any] = {"model": config.model, "options": options}
    if names := getattr(task, "class_names", None):
        kept["class_names"] = list(names)
    if (prepared := getattr(task, "preprocess", None)) is not None:
        kept["preprocess"] = dict(prepared)
    extras = [part for part in getattr(model, "extras", ()) if getattr(model, part) is not None]
    if config.weights and extras:
        kept["extras"] = extras
    return kept


def build(
    config: ConfigDict, weights: str | None = None, run: str | Path | None = None
) -> tuple[tasks.Task, nnx.Module]:
    """Makes the task and the model of ``config``, with adapters if it specifies them.

    Args:
      config: the whole config of the run.
      weights: a file or name to load in place of ``config.weights``; "" loads none, because a checkpoint will be
        restored.
      run: the working directory of the run that the model comes from or that is resumed; its class names are used.

    Raises:
      ValueError: unknown names or options (the message suggests similar ones); invalid data or weights.
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
        **({"weights": weights} if weights else dict.fromkeys(kept.get("extras", ()), True)),
        **({"remat": config.remat} if policy(config.remat) != NOTHING else {}),
        **({"scan": True} if config.scan else {}),
    }
    places = sharding.of_model(sharding.create_mesh(config.mesh))
    model: Any = zoo.create(
        config.model,
        rngs=nnx.Rngs(config.seed),
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        shardings=places,
        **given,
    )
    if isinstance(task, tasks.Aligns):
        task.align(model.segment_multiple)
    lora = config.get("lora")
    if lora and lora.rank:
        zoo.add_lora(
            model, rank=lora.rank, alpha=lora.alpha or None, patterns=lora.patterns, rngs=nnx.Rngs(config.seed + 1)
        )
    return task, model
