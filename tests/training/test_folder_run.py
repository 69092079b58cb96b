"""A run on a folder of images: what it leaves behind, and its use when the folder has changed, moved or gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import zoo
from configs import vit
from training import assembly, evaluation, loop
from training.workdir import begun, read_config

CLASSES = ("bee", "cat", "dog")


def fill(root: Path, names: tuple[str, ...] = CLASSES) -> None:
    """Ten images of each class, each of a shade of its own."""
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((20, 24, 3), 20 + 60 * (sum(map(ord, name)) % 4) + i, np.uint8)).save(
                root / name / f"{i}.png"
            )


def config(data: Path) -> ConfigDict:
    made = vit.get_config(f"folder,path={data}")
    made.model_options = ConfigDict({"features": 16, "depth": 1, "num_heads": 2})
    made.task.update({"image_size": 16, "class_weights": "balanced"})
    made.update(
        {
            "train_for": "4 steps",
            "eval_every": "2 steps",
            "batch_size": 6,
            "schedule": {"warmup": "1 steps"},
            "workers": 0,
        }
    )
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, loop.Result, Any]:
    root = tmp_path_factory.mktemp("folder")
    data, workdir = root / "data", root / "run"
    fill(data)
    task, model = assembly.build(config(data))
    result = loop.train(config(data), model, task, workdir, record=assembly.record(config(data), task))
    return data, workdir, result, task


def figures(workdir: Path, data: Path) -> dict[str, Any]:
    """What eval.py does with --workdir and --data."""
    kept = read_config(workdir)
    evaluation.find_data(kept, str(data))
    task, model = assembly.build(kept, weights="", run=workdir)
    evaluation.load(kept, model, workdir)
    return evaluation.record(kept, model, task)


def test_what_a_run_leaves(trained: tuple[Path, Path, loop.Result, Any]) -> None:
    _, workdir, result, task = trained
    said = json.loads((workdir / loop.EXPLAINED).read_text())
    assert [line["name"] for line in said["classes"]] == list(CLASSES)
    images = [line["images"] for line in said["classes"]]
    assert sum(images) == len(task.examples("test"))
    mean = sum(line["images"] * line["accuracy"] for line in said["classes"]) / sum(images)
    assert mean == pytest.approx(result.figures["raw"]["accuracy"])
    assert sum(pair["images"] for pair in said["confused"]) == pytest.approx(sum(images) * (1 - mean))
    assert str(workdir / "classes.json") in loop.summary(result, task, workdir)
    commands = loop.following(task, workdir, result)
    assert [line.split()[1] for line in commands[:2]] == ["eval.py", "predict.py"]
    assert commands[2] == f"tensorboard --logdir={workdir}/tensorboard"


def test_a_run_is_used_when_its_folder_has_changed_or_gone(
    trained: tuple[Path, Path, loop.Result, Any], tmp_path: Path
) -> None:
    data, workdir, result, _ = trained
    assert begun(workdir)
    moved = tmp_path / "elsewhere"
    shutil.copytree(data, moved)
    assert figures(workdir, moved)["accuracy"] == pytest.approx(result.figures["raw"]["accuracy"])
    with pytest.raises(ValueError, match=rf"no longer at {tmp_path}/gone: --data=DIR says where"):
        evaluation.find_data(config(tmp_path / "gone"), None)
    model: Any = zoo.create(weights=workdir)
    assert tuple(model.class_names) == CLASSES
    (row,) = zoo.predict(model, moved / "dog" / "0.png", top_k=3)
    assert {name for name, _ in row} == set(CLASSES)
    shutil.rmtree(moved / "bee")  # cat and dog would become 0 and 1
    task, _ = assembly.build(config(moved), weights="", run=workdir)
    assert {int(task.examples("train").get(i, None)["label"]) for i in range(len(task.examples("train")))} == {1, 2}
    fill(moved, ("ant",))
    with pytest.raises(ValueError, match="classes that the model was not trained on: ant"):
        figures(workdir, moved)
