"""Runs that end early: asked to stop, killed while saving, out of disk. A resumed run equals an unbroken one."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import mamba
from layers.state import flatten
from tests.devices import environment
from tests.training import toy, toy_run
from training import assembly, evaluation, loop
from training import optimizer as optimizers
from training.checkpoint import Checkpoints
from training.command import one_message
from training.step import initial_state
from training.workdir import read_config

ROOT = Path(__file__).resolve().parents[2]
CHANGES = {"accumulate": 2, "ema": 0.9, "train_for": "3 epochs", "workers": 2}


def launch(workdir: Path, **changes) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.training.toy_run", str(workdir), json.dumps({**CHANGES, **changes})]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def final_state(workdir: Path):
    model = toy.ToyModel(dropout=0.2)
    optimizer = optimizers.create(model, flatten(model, nnx.Param), toy.config().optimizer)
    return Checkpoints(workdir, read_only=True).restore(initial_state(model, optimizer, 0.9))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    outcome = toy_run.run(str(workdir), CHANGES)
    assert outcome["finished"]
    return workdir, outcome


def assert_same_run(workdir: Path, outcome: dict, uninterrupted) -> None:
    """The end is the same bit for bit, and so is the record of the figures."""
    whole, whole_outcome = uninterrupted
    (state, step), (expected, last) = final_state(workdir), final_state(whole)
    assert step == last
    assert jax.tree.all(jax.tree.map(np.array_equal, state, expected))
    assert {**outcome, "step": 0} == {**whole_outcome, "step": 0}
    assert validation(workdir) == validation(whole)


def validation(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "validation"]


def test_a_run_asked_to_stop_goes_on_bit_for_bit_with_other_workers(tmp_path, uninterrupted, capsys):
    outcome = toy_run.run(str(tmp_path), {**CHANGES, "workers": 1}, stop=150)
    assert 0 < outcome["step"] < 38
    assert not outcome["finished"]
    assert outcome["step"] % 13 != 0, "the stop is meant to fall inside an epoch"
    outcome = toy_run.run(str(tmp_path), {**CHANGES, "workers": 0})
    assert "resuming from step" in capsys.readouterr().err
    assert_same_run(tmp_path, outcome, uninterrupted)


@pytest.mark.full
def test_a_run_killed_while_saving_loses_only_what_came_after_the_last_checkpoint(tmp_path, uninterrupted, capsys):
    process = launch(tmp_path, save_every="1 steps")
    deadline = time.monotonic() + 240
    while not (any(tmp_path.glob("checkpoints/[1-9]")) and any(tmp_path.glob("checkpoints/*tmp*"))):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.communicate()
    saved = max(int(p.name) for p in tmp_path.glob("checkpoints/*") if p.name.isdecimal())
    outcome = toy_run.run(str(tmp_path), CHANGES)
    assert f"resuming from step {saved} " in capsys.readouterr().err
    assert_same_run(tmp_path, outcome, uninterrupted)


@pytest.mark.full
def test_a_full_disk_is_one_message_and_the_run_can_go_on(tmp_path, uninterrupted, capsys):
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # writing beyond it fails as on a full disk
    try:
        with pytest.raises(SystemExit, match="error: can't write"), one_message():
            toy_run.run(str(tmp_path), CHANGES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert_same_run(tmp_path, toy_run.run(str(tmp_path), CHANGES), uninterrupted)


def test_four_devices_equal_one(tmp_path, uninterrupted, eight_devices):
    outcome = eight_devices("tests.training.toy_run:run", str(tmp_path), {**CHANGES, "mesh": {"data": 4}})
    whole, whole_outcome = uninterrupted
    (state, _), (expected, _) = final_state(tmp_path), final_state(whole)
    for name, value in expected["params"].items():
        difference = np.abs(state["params"][name] - value).max() / np.abs(value).max()
        assert difference < 1e-5, name
    assert outcome["figures"]["raw"]["loss"] == pytest.approx(whole_outcome["figures"]["raw"]["loss"], rel=1e-5)


@pytest.mark.full
def test_a_run_of_commit_07b107a_evaluates_and_goes_on(tmp_path):
    """The config of today's command has fields that the run's has not."""
    with zipfile.ZipFile(Path(__file__).parents[1] / "zoo" / "run_before_0_2.zip") as archive:
        archive.extractall(tmp_path)
    task, model = assembly.build(read_config(tmp_path), weights="", run=tmp_path)
    assert evaluation.load(read_config(tmp_path), model, tmp_path) == 3
    assert evaluation.record(read_config(tmp_path), model, task)["examples"] > 0
    config = mamba.get_config("task,name=parity,length=8")
    config.model_options = ConfigDict({"depth": 1, "features": 8})
    config.update(
        {
            "train_for": "5 steps",
            "eval_every": "3 steps",
            "save_every": "3 steps",
            "batch_size": 4,
            "schedule": {"warmup": "1 steps"},
        }
    )
    assert loop.train(config, assembly.build(config)[1], task, tmp_path, extend=True).step == 5
