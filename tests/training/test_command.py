"""The commands, from one end to the other on a task of a second, and their flags and errors: one message each, no
traceback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import zoo
from layers.lora import adapters
from layers.state import flatten
from tests.training import toy
from training import assembly, command, evaluation
from training.workdir import read_config

ROOT = Path(__file__).resolve().parents[2]
MODEL = {"features": 16, "depth": 1, "num_heads": 2}
SMALL = {
    "train_for": "2 steps", "eval_every": "2 steps", "save_every": "2 steps", "schedule.warmup": "0 steps",
    "batch_size": 8,
    **{f"model_options.{name}": value for name, value in MODEL.items()},
}  # fmt: skip


def run(*arguments: str, first: Path = ROOT) -> str:
    """What a command printed; it finds modules in ``first`` before others."""
    environment = {**os.environ, "PYTHONPATH": f"{first}{os.pathsep}{ROOT}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run that trains adapters of a file's weights, and what it printed; without matplotlib, whose
    import and picture take more than a second.
    """
    workdir = tmp_path_factory.mktemp("run")
    file = workdir.with_name("weights") / "a.safetensors"
    file.parent.mkdir()
    absent = tmp_path_factory.mktemp("absent")
    (absent / "matplotlib.py").write_text("raise ImportError")
    zoo.save(zoo.create("transformer_nano", vocab_size=2, **MODEL, rngs=nnx.Rngs(9)), file)
    task = "--config=configs/transformer.py:task,name=parity,length=8,num_eval=16,test_length=12"
    flags = {**SMALL, "weights": file, "lora.rank": 2}
    fields = [f"--config.{name}={value}" for name, value in flags.items()]
    return workdir, run("train.py", task, f"--workdir={workdir}", *fields, first=absent)


def test_train(trained):
    workdir, printed = trained
    assert "test (raw weights)" in printed
    assert "no curve.png: python -m pip install matplotlib" in printed
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["2"]


@pytest.mark.full  # a second process, which with the run that it evaluates is beyond what a quick test may take
def test_eval(trained):
    found = json.loads(run("eval.py", f"--workdir={trained[0]}").splitlines()[-1])
    assert (found["examples"], found["step"], found["split"]) == (16, 2, "test")


@pytest.mark.full
def test_what_was_trained(trained):
    """Adapters; the rest is as in the file."""
    workdir, _ = trained
    config = read_config(workdir)
    model = assembly.build(config, weights="")[1]
    assert adapters(model)
    assert evaluation.load(config, model, workdir) == 2
    given = flatten(zoo.create("transformer_nano", weights=config.weights, vocab_size=2, **MODEL))
    frozen = {name for name, leaf in flatten(model).items() if name in given and np.array_equal(leaf, given[name])}
    assert {"blocks.0.mixer.query.kernel", "embedding.embedding"} <= frozen


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.batch_sise=3", "unknown field of config 'batch_sise': did you mean 'batch_size'"),
        (
            "--config.optimizer.learning_rte=3",
            "unknown field of config.optimizer 'learning_rte': did you mean 'learning_rate'",
        ),
        ("--config.seed.x=3", "unknown field of config.seed 'x'"),
    ],
)
def test_an_unknown_field_is_refused_with_near_ones(flag, message):
    with pytest.raises(ValueError, match=message):
        command.check_fields(toy.config(), ["--workdir=x", flag])


def test_known_fields_pass():
    flags = [
        "--config=x",
        "--config.seed=3",
        "--config.optimizer.learning_rate",
        "1",
        "--config.optimizer.freeze=('a',)",
    ]
    command.check_fields(toy.config(), ["train.py", *flags])


def ours():
    raise ValueError("plain words")


def system():
    open("/nowhere/at/all")  # noqa: SIM115


@pytest.mark.parametrize(("fail", "message"), [(ours, "error: plain words"), (system, "No such file")])
def test_errors_for_the_user_are_a_message(fail, message):
    with pytest.raises(SystemExit, match=message), command.one_message():
        fail()


def test_errors_of_libraries_keep_their_traceback():
    with pytest.raises(ValueError, match="Expecting value"), command.one_message():
        json.loads("")


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"there is no file .*absent.py"):
        command.parse(["train.py", f"--config={tmp_path}/absent.py"])


@pytest.mark.parametrize(
    ("text", "message"), [("x = 1", r"not define get_config\(\)"), ("def", "is not Python: invalid syntax, line 1")]
)
def test_a_file_that_is_no_config_is_one_line(tmp_path, text, message):
    (tmp_path / "none.py").write_text(text)
    with pytest.raises(SystemExit, match=message):
        command.parse(["train.py", f"--config={tmp_path}/none.py"])


def test_hyper_parameters_of_the_model_are_given_as_flags(monkeypatch):
    monkeypatch.setattr(command, "_options", {})
    given = ["model_options.depth=2", "model_options.pattern=('mamba', 'attention')", "model_options.a=b=c"]
    given += ["optimizer.options.b1=0.5", "aux_losses.balance=0.01"]
    plain = ["train.py", "--config=x"]
    assert command._take_options([*plain, *(f"--config.{text}" for text in given)]) == plain
    assert command._options == {
        "model_options": {"depth": 2, "pattern": ("mamba", "attention"), "a": "b=c"},
        "optimizer.options": {"b1": 0.5},
        "aux_losses": {"balance": 0.01},
    }


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("learning_rate=3", "unknown field .*; --config.optimizer.learning_rate is one; hyper-parameters"),
        ("mixer=agent", "unknown field .*; hyper-parameters .* --config.model_options.NAME=VALUE"),
    ],
)
def test_a_field_of_another_group_is_found(field, message):
    with pytest.raises(ValueError, match=message):
        command.check_fields(toy.config(), ["train.py", f"--config.{field}"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("batch_size", "is given as --config.batch_size=VALUE"),
        ("learning_rate", "is given as --config.optimizer.learning_rate=VALUE"),
        ("cfg.optimizer.learning_rate", "is given as --config.optimizer.learning_rate=VALUE"),
        ("config.batch_sise", "did you mean --config.batch_size"),
        ("zzz", "unknown flag --zzz: --help shows the flags"),
    ],
)
def test_an_unknown_flag_leads_to_the_field(name, message):
    assert message in command._unknown_flag(name, toy.config())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "flag --config.seed=1.5: invalid literal for int() with base 10: '1.5'",
            "--config.seed=1.5: it takes a whole",
        ),
        ("flag --config.ema=x: could not convert string to float: 'x'", "--config.ema=x: it takes a number"),
        ("flag --extend=3: ('Non-boolean argument to boolean flag', '3')", "--extend=3: it takes true or false"),
        ("Missing value for flag --workdir", "Missing value for flag --workdir"),
    ],
)
def test_a_value_of_another_type_is_said_in_plain_words(said, message):
    assert command._reworded(said).startswith(message)


def test_a_device_without_memory_is_one_message():
    message = r"error: out of memory: RESOURCE_EXHAUSTED.*--config.accumulate"
    with pytest.raises(SystemExit, match=message), command.one_message():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmore")
    with pytest.raises(jax.errors.JaxRuntimeError), command.one_message():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_a_wrong_value_is_one_line():
    given = [sys.executable, "train.py", "--config", "configs/biformer.py", "--config.batch_size=abc"]
    done = subprocess.run(given, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert (done.returncode, done.stderr) == (1, "error: --config.batch_size=abc: it takes a whole number\n")


@pytest.mark.parametrize("given", ["biforme", "configs/biforme.py", "biforme.py:folder,path=x"])
def test_a_config_file_is_suggested(given):
    with pytest.raises(SystemExit, match=r"there is no file .*: did you mean configs/biformer.py"):
        command.parse(["train.py", f"--config={given}"])


def test_options_of_the_model_may_follow_a_space(monkeypatch):
    monkeypatch.setattr(command, "_options", {})
    given = ["train.py", "--config", "x", "--config.model_options.depth", "2"]
    assert command._take_options(given) == ["train.py", "--config=x"]
    assert command._options == {"model_options": {"depth": 2}}


@pytest.mark.parametrize("value", ["photos", ""])
def test_a_group_of_fields_takes_no_value(value):
    with pytest.raises(SystemExit, match=r"is a group of fields, .*: data_dir, name;.*folder,path=DIR"):
        command.parse(["train.py", "--config=configs/mamba.py", f"--config.task.dataset={value}"])
