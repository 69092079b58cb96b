"""Runs that start from a file of weights: the whole model, the head alone, or adapters; each is a field or two of the
config. By the commands: test_command.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from configs import biformer
from layers.lora import adapters
from layers.state import flatten
from training import assembly, evaluation, loop

SMALL = {"features": (8,), "stem": (4, 8), "depths": (1,), "num_heads": (1,)}
CHANGES = {
    "train_for": "3 steps",
    "save_every": "3 steps",
    "eval_every": "1 epoch",
    "workers": 0,
    "log_every": 1,
    "schedule.warmup": "0 steps",
    "schedule.name": "constant",
    "optimizer.learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 7 classes, whose statistics are not those of a fresh one, under its authors' names."""
    model = zoo.create("biformer_nano", num_classes=7, **SMALL, rngs=nnx.Rngs(9))
    rng = np.random.default_rng(0)
    statistics = {
        name: 1 + 0.1 * rng.standard_normal(leaf.shape) for name, leaf in flatten(model, nnx.BatchStat).items()
    }
    zoo.load(model, {**flatten(model), **statistics}, naming="zoo")
    path = tmp_path_factory.mktemp("weights") / "seven.safetensors"
    zoo.save(model, path)
    return path


def config(digits_dir: str, file: Path, **changes: Any) -> Any:
    result = biformer.get_config()
    result.model_options.update(SMALL)
    result.task.dataset.data_dir = digits_dir
    result.weights = str(file)
    result.update_from_flattened_dict(
        {**CHANGES, **{name.replace("__", "."): value for name, value in changes.items()}}
    )
    return result


def start(config: Any) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """Task, model, and the arrays it starts from."""
    with pytest.warns(UserWarning, match=r"seven.safetensors has 7 classes: the head for 10 classes stays random"):
        task, model = assembly.build(config)
    return task, model, {name: np.asarray(leaf) for name, leaf in flatten(model).items()}


def moved(model: nnx.Module, before: dict[str, np.ndarray]) -> set[str]:
    return {name for name, leaf in flatten(model).items() if not np.array_equal(leaf, before[name])}


def logits(model: Any) -> jax.Array:
    model.eval()
    graphdef, state = nnx.split(model)
    x = np.random.default_rng(3).standard_normal((2, 32, 32, 3)).astype(np.float32)
    return jax.jit(lambda state: nnx.merge(graphdef, state)(x))(state)


def test_a_file_of_another_number_of_classes_is_where_training_starts(
    tmp_path: Path, digits_dir: str, file: Path
) -> None:
    task, model, before = start(config(digits_dir, file))
    released = flatten(zoo.create("biformer_nano", weights=file, num_classes=7, **SMALL))
    assert before["head.kernel"].shape == (8, 10)
    assert all(np.array_equal(before[name], released[name]) for name in released if not name.startswith("head"))
    result = loop.train(config(digits_dir, file), model, task, tmp_path)
    assert result.finished
    assert moved(model, before) == set(before)


def test_the_head_alone(tmp_path: Path, digits_dir: str, file: Path) -> None:
    chosen = config(digits_dir, file, optimizer__freeze=("*", "!head.*"))
    task, model, before = start(chosen)
    loop.train(chosen, model, task, tmp_path)
    assert moved(model, before) == {"head.kernel", "head.bias"}


@pytest.mark.full
def test_adapters(tmp_path: Path, digits_dir: str, file: Path) -> None:
    """Only they and the head move, a run that is cut goes on bit for bit, and the plain model that a run leaves gives
    the same outputs.
    """
    chosen = config(digits_dir, file, lora__rank=2, lora__alpha=4.0)
    task, model, before = start(chosen)
    loop.train(chosen, model, task, tmp_path / "whole")
    expected = {name for name in before if ".lora_" in name} | {"head.kernel", "head.bias"}
    assert moved(model, before) == expected
    assert len(expected) > 10

    cut = config(digits_dir, file, lora__rank=2, lora__alpha=4.0, train_for="1 steps")
    task, first, _ = start(cut)
    assert loop.train(cut, first, task, tmp_path / "cut").step == 1
    task, again, _ = start(chosen)
    assert loop.train(chosen, again, task, tmp_path / "cut", extend=True).finished
    assert not moved(again, {name: np.asarray(leaf) for name, leaf in flatten(model).items()})

    # What follows needs the file no more.
    unloaded = assembly.build(chosen, weights="")[1]
    assert evaluation.load(chosen, unloaded, tmp_path / "whole") == 3
    assert np.array_equal(logits(unloaded), logits(model))
    plain = zoo.create("biformer_nano", weights=tmp_path / "whole", num_classes=10, **SMALL)
    assert not adapters(plain)
    np.testing.assert_allclose(logits(plain), logits(model), atol=1e-6 * float(jnp.abs(logits(model)).max()))
