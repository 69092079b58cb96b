"""Long Range Arena (Y. Tay et al., arXiv:2011.04006): the authors' models and recipes, with any mixer in them.

    --config=configs/long_range_arena.py                    short ListOps and a small model, minutes on two cores
    --config=configs/long_range_arena.py:listops            the paper's; path=DIR reads the authors' files
    --config=configs/long_range_arena.py:text               prepared TFDS imdb_reviews; path=DIR is the user's folder
    --config=configs/long_range_arena.py:retrieval,path=DIR AAN pairs: three .tsv files
    --config=configs/long_range_arena.py:image              prepared TFDS cifar10; path=DIR is a folder of images
    --config=configs/long_range_arena.py:pathfinder         also pathfinder_64, path_x (128 pixels) and path_256

All of them take mixer=NAME (``layers.list_mixers()``); listops, image and pathfinder also take variant=nano (small data
and model). cache=DIR stores the generated images of Pathfinder. denoise=masked or denoise=causal pretrains on the
sequences without classes; a run with --config.weights=RUN starts from the result.

Model sizes, steps, batch sizes and learning rates are those of the configurations in
github.com/google-research/long-range-arena, where the learning rate for texts is 0.05 / sqrt(max(step, warm-up)). For
retrieval the warm-up of 8000 steps is longer than the run of 5000, which therefore ends at 5/8 of the peak. The nano
settings are our choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.common import parse, run
from suggestions import unknown

_ADAM = {"b2": 0.98, "eps": 1e-9}


def _text(steps: int, warmup: int) -> dict[str, Any]:
    """The recipe for listops, text and retrieval."""
    reached = min(warmup, steps)
    return {
        "train_for": f"{steps} steps", "eval_every": f"{steps // 10} steps", "save_every": f"{steps // 10} steps",
        "batch_size": 32,
        "optimizer": {"learning_rate": 0.05 / math.sqrt(warmup) * reached / warmup, "weight_decay": 0.1},
        "schedule": {"name": "rsqrt", "warmup": f"{reached} steps"},
        "model_options": {"dropout": 0.1},
    }  # fmt: skip


def _pixels(epochs: int, batch_size: int, rate: float, dropout: float, clip: float = 0.0) -> dict[str, Any]:
    """The recipe for images."""
    return {
        "train_for": f"{epochs} epochs", "eval_every": "1 epoch", "save_every": "5 epochs", "batch_size": batch_size,
        "optimizer": {"learning_rate": rate, "weight_decay": 0.0, "clip_norm": clip},
        "schedule": {"name": "cosine", "warmup": "1 epoch"},
        "model_options": {"dropout": dropout},
    }  # fmt: skip


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "listops": {"model": "lra_listops", **_text(5000, 1000)},
    "text": {"model": "lra_text", **_text(20_000, 8000)},
    "retrieval": {"model": "lra_retrieval", **_text(5000, 8000)},
    "image": {"model": "lra_image", **_pixels(200, 256, 5e-4, 0.3)},
    "pathfinder": {"model": "lra_pathfinder", **_pixels(200, 512, 1e-3, 0.2)},
    "pathfinder_64": {"model": "lra_pathfinder_64", **_pixels(200, 256, 1e-3, 0.1)},
    "path_x": {"model": "lra_pathfinder_128", **_pixels(200, 64, 1e-3, 0.1, clip=1.0)},
    "path_256": {"model": "lra_pathfinder_256", **_pixels(100, 32, 1e-3, 0.1)},
}
"""The paper's recipes, by the name of the part."""
NANO: Mapping[str, Mapping[str, Any]] = {
    "listops": {
        "name": "listops",
        "length": 200,
        "shortest": 10,
        "max_depth": 5,
        "num_validation": 500,
        "num_test": 500,
    },
    "image": {"name": "images", "images": {"name": "digits"}},
    "pathfinder": {"name": "pathfinder", "size": 16, "dashes": 6, "num_validation": 500, "num_test": 500},
}
"""Small data, by the name of the part."""
SETTINGS = ("variant", "mixer", "denoise", "path", "name", "cache")


def _dataset(part: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """The options of the data set that the argument names."""
    path, name = settings.get("path"), settings.get("name")
    if part == "text" and path:
        return {"name": "folder", "path": path}
    if part == "image" and path:
        return {"name": "images", "images": {"name": "folder", "path": path}, "size": 32}
    if part == "image" and name:
        return {"name": "images", "images": {"name": "tfds", "builder": name}}
    found = {"path": path, "builder": name, "cache": settings.get("cache")}
    return {option: value for option, value in found.items() if value}


def get_config(argument: str = "") -> ConfigDict:
    """Returns the config; the argument is explained at the top.

    Raises:
      ValueError: an unknown part, setting or variant (the message suggests similar ones), or a part without its data.
    """
    part, settings = parse(argument or "listops,variant=nano")
    if part not in RECIPES:
        raise ValueError(unknown("part of Long Range Arena", part, RECIPES))
    for name in settings:
        if name not in SETTINGS:
            raise ValueError(unknown("setting of the config of Long Range Arena", name, SETTINGS))
    variant = settings.get("variant", "base")
    if variant not in ("base", "nano"):
        raise ValueError(unknown("variant", variant, ("base", "nano")))
    if part == "retrieval" and not settings.get("path"):
        raise ValueError("the config argument 'retrieval' needs path=, as in retrieval,path=DIR: a folder of AAN pairs")
    if variant == "nano" and part not in NANO:
        raise ValueError(f"variant=nano: there are small data for {', '.join(NANO)}, and not for {part}")
    config = run()
    if variant == "nano":
        config.update(
            {"model": "lra_nano", "train_for": "2000 steps", "eval_every": "200 steps", "save_every": "500 steps"}
        )
        config.update({"batch_size": 32, "optimizer": {"learning_rate": 1e-3, "clip_norm": 1.0}})
        config.schedule.update({"warmup": "100 steps", "final": 0.1})
        dataset: dict[str, Any] = dict(NANO[part])
        if part == "pathfinder":
            config.model_options.pool = "average"
    else:
        recipe = dict(RECIPES[part])
        config.model_options.update(recipe.pop("model_options"))
        config.update(recipe)
        config.optimizer.options.update(_ADAM)
        dataset = _dataset(part, settings)
    if mixer := settings.get("mixer"):
        config.model_options.mixer = mixer
    task = {"name": "long_range_arena", "part": part, "dataset": dataset}
    if kind := settings.get("denoise"):
        task = {"name": "denoising", "of": task, "kind": kind}
    config.task = ConfigDict(task)
    return config
