"""Configs of language models: every file, recipe and variant builds; their tasks and models exist; mistakes are
answered.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

import tasks
import zoo
from configs import common

NAMES = sorted(
    path.stem
    for path in Path(common.__file__).parent.glob("*.py")
    if "language(" in path.read_text() and path.stem != "common"
)
CASES = [
    (name, recipe + separator + f"variant={variant}")
    for name in NAMES
    for variant in importlib.import_module(f"configs.{name}").ARCHITECTURE.variants
    for recipe, separator in (
        ("text", ","),
        ("text,path=DIR,with,commas", ","),
        ("tfds,name=lm1b", ","),
        ("task,name=parity,length=12", ","),
    )
]


def config_of(name: str, argument: str) -> Any:
    return importlib.import_module(f"configs.{name}").get_config(argument)


def test_there_are_language_configs() -> None:
    assert {"mamba", "transformer"} <= set(NAMES)


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_a_config_says_only_what_the_task_and_the_run_know(name: str, argument: str) -> None:
    config = config_of(name, argument)
    assert set(config) == set(common.run())
    options = config.task.to_dict()
    takes = inspect.signature(tasks.lookup(options.pop("name"))).parameters
    assert set(options) <= set(takes)
    entry = zoo.variant(config.model)
    zoo.registry.configure(entry, {**config.model_options.to_dict(), "vocab_size": 256})


@pytest.mark.parametrize("name", NAMES)
def test_arguments(name: str) -> None:
    assert config_of(name, "").to_dict() == config_of(name, "text").to_dict()
    assert config_of(name, "").task.dataset.name == "stdlib"
    assert config_of(name, "text,path=DIR,with,commas").task.dataset.to_dict() == {
        "name": "files",
        "path": "DIR,with,commas",
    }
    assert config_of(name, "text,tokenizer=FILE").task.tokenizer == "FILE"
    assert config_of(name, "tfds,name=wiki40b/en").task.dataset.builder == "wiki40b/en"
    task = config_of(name, "task,name=selective_copying,length=64,memorize=4").task
    assert task.to_dict() == {"name": "selective_copying", "length": 64, "memorize": 4}
    assert tasks.create(**task.to_dict()).length == 64
    assert config_of(name, "task,name=permutation_tracking,group=S3").task.group == "S3"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("txt", "unknown config argument 'txt': did you mean 'text'"),
        ("text=DIR", "'text=DIR' is a setting: what to train on comes first, as in text,path=DIR"),
        ("text,pth=DIR", "unknown setting of the config argument 'text' 'pth': did you mean 'path'"),
        ("tfds", "needs name="),
        ("task", "needs name="),
        ("text,variant=nanoo", "unknown variant 'nanoo': did you mean 'nano'"),
    ],
)
def test_mistakes(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of("transformer", argument)
