"""The loop as a whole on the toy: what a run leaves behind, what it refuses, how it stops."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from layers.state import flatten
from tests.training import toy
from training import curve, evaluation, loop
from training import workdir as workdirs
from training.checkpoint import Checkpoints


def run(workdir, model=None, task=None, extend=False, **changes):
    task = task or toy.ToyTask()
    model = model or toy.ToyModel()
    return loop.train(toy.config(**changes), model, task, workdir, extend=extend), model, task


def records(workdir, split):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    result, model, task = run(workdir, ema=0.9, profile=3)
    return workdir, result, model, task


def test_it_learns_and_reports_the_final_weights(finished):
    workdir, result, _, task = finished
    assert result.finished
    assert result.step == 50
    assert result.figures["ema"]["accuracy"] > 0.7
    assert result.figures["raw"] != result.figures["ema"]
    table = loop.summary(result, task, workdir)
    assert "test (ema weights)" in table
    assert f"at step {result.best.step}" in table


def test_the_workdir_has_everything(finished):
    workdir = finished[0]
    train = records(workdir, "train")
    assert [line["step"] for line in train] == [5, 10, 13, 18, 23, 25, 30, 35, 38, 43, 48, 50]
    assert {
        "loss",
        "accuracy",
        "learning_rate",
        "gradient_norm",
        "step_seconds",
        "examples_per_second",
        "peak_memory_mib",
        "epoch",
    } <= set(train[0])
    assert [line["step"] for line in records(workdir, "validation")] == [13, 25, 38, 50]
    assert json.loads((workdir / "config.json").read_text())["ema"] == 0.9
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert {"device", "git", "seed", "command"} <= set(environment)
    assert any((workdir / "tensorboard").iterdir())
    assert any((workdir / "profile").rglob("*.xplane.pb"))


def test_a_profile_of_more_steps_than_are_left(finished, tmp_path):
    message = r"profile=49 traces that many steps after the first 2, and 50 are left: ask for at most 48, or lengthen"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, profile=49)
    with pytest.raises(ValueError, match=r"and 0 are left: ask for at most 0, or lengthen train_for"):
        run(finished[0], ema=0.9, profile=1)


def test_the_model_and_the_checkpoint_have_the_final_weights(finished):
    workdir, result, model, task = finished
    here = evaluation.record(toy.config(), model, task)
    assert here["examples"] == 41
    assert here["loss"] == pytest.approx(result.figures["ema"]["loss"], rel=1e-6)
    other = toy.ToyModel(seed=5)
    assert evaluation.load(toy.config(ema=0.9), other, workdir) == 50
    assert all(np.array_equal(a, b) for a, b in zip(flatten(model).values(), flatten(other).values()))
    assert evaluation.load(toy.config(ema=0.9), other, workdir, "best") == result.best.step
    assert evaluation.record(toy.config(), other, task, "validation")["accuracy"] == pytest.approx(result.best.value)


def test_a_finished_run_only_evaluates_again(finished):
    workdir, result, *_ = finished
    before = records(workdir, "train")
    again, *_ = run(workdir, ema=0.9)
    assert again.figures == result.figures
    assert again.best == result.best
    assert records(workdir, "train") == before


def test_another_config_is_refused_and_listed_but_for_what_changes_nothing(finished):
    workdir = finished[0]
    with pytest.raises(
        ValueError,
        match=r"another config:\n  optimizer.learning_rate: 0.01 there, 0.5 here\n  seed: 0 there, 1 here\nuse another "
        r"--workdir",
    ):
        run(workdir, ema=0.9, seed=1, optimizer__learning_rate=0.5, workers=1, keep=5, log_every=1)
    with pytest.raises(ValueError, match="add --extend"):
        run(workdir, ema=0.9, train_for="5 epochs")
    longer, *_ = run(workdir, ema=0.9, train_for="5 epochs", extend=True, log_every=1)
    assert longer.step == 63


def test_the_config_of_an_older_run_is_understood(tmp_path):
    """Where a field had another form, or was not there yet."""
    new = toy.config(optimizer__multipliers=(("head", 2.0),))
    old = workdirs.plain(new) | {"remat": False}
    old["optimizer"] = {**old["optimizer"], "multipliers": {"head": 2.0}}
    del old["patience"]
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"optimizer\.multipliers"):
        workdirs.open_workdir(tmp_path, toy.config())
    workdirs.open_workdir(tmp_path, new)
    assert json.loads((tmp_path / "config.json").read_text()) == workdirs.plain(new)


@pytest.mark.parametrize("batch_size", [1, 41, 100])
def test_evaluation_does_not_depend_on_the_batch_size(finished, batch_size):
    """The run's own is 8."""
    _, result, model, task = finished
    got = evaluation.record(toy.config(batch_size=batch_size), model, task)
    assert got["examples"] == 41
    assert {name: got[name] for name in result.figures["ema"]} == pytest.approx(result.figures["ema"], rel=1e-5)


def test_a_step_that_is_not_finite_stops_the_run_and_keeps_the_last_finite_state(tmp_path):
    with pytest.raises(
        loop.NonFiniteError, match=r"step \d+, learning rate [\d.e-]+: gradients of first, head, norm not finite"
    ) as caught:
        run(tmp_path, task=toy.ToyTask(poison=5), save_every="")
    step = int(str(caught.value).split()[1].rstrip(","))
    assert f"after step {step - 1} is kept" in str(caught.value)
    assert Checkpoints(tmp_path, read_only=True).steps() == ([step - 1] if step > 1 else [])
    result, model, _ = run(tmp_path, task=toy.ToyTask(poison=5), save_every="", nonfinite="skip")
    assert result.finished
    assert sum(line.get("skipped", 0) for line in records(tmp_path, "train")) == 4  # once an epoch
    assert all(np.isfinite(value).all() for value in flatten(model, nnx.Param).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 9, "accumulate": 2},
            r"batch_size=9 is not divisible by accumulate=2 times 1 devices .*--config.batch_size=8 would be",
        ),
        ({"mesh": {"data": 64}}, "mesh.data=64, but there are"),
        ({"mesh": {"dat": 1}}, "unknown mesh axis 'dat': did you mean 'data'"),
        ({"nonfinite": "ignore"}, '"stop" or "skip"'),
        ({"train_for": "many"}, "train_for='many' is not a duration"),
        ({"keep": 0}, "keep=0"),
    ],
)
def test_refusals_come_before_anything_is_written(tmp_path, changes, message):
    config = toy.config()
    config.unlock()
    config.update({name: value for name, value in changes.items() if name != "mesh"})
    if "mesh" in changes:
        config.mesh = changes["mesh"]
    with pytest.raises(ValueError, match=message):
        loop.train(config, toy.ToyModel(), toy.ToyTask(), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_unwritable_workdir_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"can't write to the working directory .*file.*--workdir"):
        run(tmp_path / "file")


def test_an_error_in_an_example_ends_the_run_with_its_message(tmp_path):
    with pytest.raises(ValueError, match="example 7 is broken"):
        run(tmp_path, task=toy.ToyTask(broken=7), workers=2)


def test_a_second_run_in_a_workdir_is_refused(tmp_path):
    with (
        workdirs.locked(tmp_path, pytest.fail),
        pytest.raises(ValueError, match=rf"is in use by another run \(process {os.getpid()} on .*another --workdir"),
    ):
        run(tmp_path)
    assert not (tmp_path / "config.json").exists()
    with workdirs.locked(tmp_path, pytest.fail):
        pass  # released with the first


def test_what_can_not_be_locked_is_reported(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = []
    with workdirs.locked(tmp_path, said.append):
        assert said == [
            f"{tmp_path} can't be locked ([Errno {errno.ENOLCK}] No locks available): see that no second run uses it"
        ]


def test_patience_ends_a_run_that_gets_no_better(tmp_path):
    still = {"optimizer__learning_rate": 0.0, "save_every": ""}
    plain = lambda: toy.ToyModel(norm=False)  # noqa: E731  (statistics would move without a learning rate)
    result, *_ = run(tmp_path, model=plain(), patience=2, **still)
    assert (result.step, result.early, result.finished) == (
        38,
        True,
        True,
    )  # the first evaluation is the best; two more are no better
    assert result.best.step == 13
    assert "38 of 50: the last evaluations brought no better accuracy" in loop.summary(result, toy.ToyTask(), tmp_path)
    again, *_ = run(tmp_path, model=plain(), patience=2, **still)
    assert (again.step, again.figures) == (38, result.figures)
    more, *_ = run(tmp_path, model=plain(), patience=3, **still)
    assert (more.step, more.early) == (50, True)
    with pytest.raises(ValueError, match="patience=2 counts evaluations"):
        run(tmp_path / "other", patience=2, eval_every="")


def test_a_curve_is_drawn_where_it_can_be(finished, monkeypatch):
    workdir, _, _, task = finished
    assert curve.draw(workdir, task.monitor) == ""
    assert (workdir / curve.FILE).read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert curve.draw(workdir, task.monitor) == "no curve.png: python -m pip install matplotlib"
