"""A model of the zoo taught by another one: through the config, the task and the step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from configs import vit
from layers.state import flatten
from training import assembly
from training import optimizer as optimizers
from training.input import train_batch
from training.step import Skeleton, initial_state, make_step

TINY = {"depth": 1, "features": 8, "num_heads": 1}


def test_each_head_learns_from_its_own(digits_dir: str) -> None:
    """The label moves the class token's head, the teacher's answer the distillation token's."""
    config = vit.get_config()
    config.model_options.update({**TINY, "distilled": True})
    config.task.dataset.data_dir = digits_dir
    config.task.distillation.teacher.update({"name": "vit_nano_patch4_32", "num_classes": 10, **TINY})
    config.task.distillation.weight = 1.0
    task, model = assembly.build(config)
    chosen = optimizers.create(model, flatten(model), {"name": "sgd", "learning_rate": 0.1, "weight_decay": 0.0})
    step = make_step(
        Skeleton(model),
        task,
        chosen,
        lambda step: jnp.float32(0.1),
        seed=0,
        accumulate=1,
        ema=0.0,
        aux_losses={},
        sticky=True,
    )
    state = initial_state(model, chosen, 0.0)
    moved, report = jax.jit(step)(state, train_batch(task.examples("train"), 0, 4, 0, 1))
    changed = {name for name, value in moved["params"].items() if not np.array_equal(value, state["params"][name])}
    assert np.isfinite(report["gradient_norm"])
    assert {"distilled_head.kernel", "distillation_token"} <= changed
    assert "head.kernel" not in changed  # no part of the loss is the labels'


def test_a_teacher_must_know_the_classes() -> None:
    with pytest.raises(
        ValueError, match="the teacher has 7 classes, and the task 2: give the working directory of a run"
    ):
        assembly.make_teacher({"name": "vit_nano_patch4_32", "num_classes": 7, **TINY}, ("a", "b"))
    assert zoo.create("vit_nano_patch4_32", num_classes=7, **TINY).class_names is None
