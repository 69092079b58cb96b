"""The commands of ``python -m zoo`` and ``mixer-zoo``: what they print and write, and how they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import layers
import zoo
from layers.state import flatten
from suggestions import installation, near
from tests.compilation import program
from zoo import commands

ROOT = Path(__file__).resolve().parents[2]
MICRO = {"depth": 1, "features": 16, "num_heads": 2}
OPTIONS = [f"--option={name}={value}" for name, value in MICRO.items()]


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    commands.main(["list", "vit_nano*"])
    assert capsys.readouterr().out.split() == zoo.list_models("vit_nano*")
    commands.main(["list", "--json"])
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert list(found) == zoo.list_models()
    assert found["vit_base_patch16_224"]["image_size"] == 224


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "BIFORMER_TINY"], "no model is named 'BIFORMER_TINY': did you mean 'biformer_tiny'"),
        (["list", "biformer_tny"], "no model is named 'biformer_tny': did you mean 'biformer_tiny'"),
        (["summary", "biformer_tny"], "unknown model 'biformer_tny': did you mean 'biformer_tiny'"),
        (["summary", "vit_nano_patch4_32", "--option=dept=2"], "no hyper-parameter 'dept': did you mean 'depth'"),
        (["summary", "vit_nano_patch4_32", "--option=depth"], "give NAME=VALUE"),
        (["summary", "vit_nano_patch4_32", "--option=depth=two"], "depth is a whole number of at least 0, not 'two'"),
        (["summary", "vit_nano_patch4_32", "--option=depth=-1"], "depth is a whole number of at least 0, not -1"),
        (["summary", "vit_nano_patch4_32", "--option=num_heads=0"], "num_heads is a whole number of at least 1, not 0"),
        (["summary", "vit_nano_patch4_32", "--option=dropout=2"], r"dropout is a number in \[0, 1\), not 2"),
        (["summary", "vit_nano_patch4_32", "--option=qkv_bias=false"], "qkv_bias is True or False, not 'false'"),
        (["summary", "vit_nano_patch4_32", "--option=mixer=3"], "a mixer is a name, .* not 3"),
        (["summary", "vit_nano_patch4_32", "--option=mixer={'name': "], "Python does not read this value"),
        (["list", "neighborhood"], "no model is named 'neighborhood', but a mixer is: --mixers lists"),
        (["list", "atention", "--mixers"], "no mixer is named 'atention': did you mean 'attention'"),
        (["predict", "a.png", "--weights=absent"], "there are no weights at absent; the name of a released"),
        (["predict", "a.png", f"--weights={__file__}"], "does not say which model it is, .* give --model=NAME"),
        (["export", "a"], "give --model=NAME, .* or --weights=DIR"),
        (["export", "none/a", "--model=vit_nano_patch4_32", *OPTIONS], "there is no folder none to write a in"),
        (["export", ".", "--model=vit_nano_patch4_32", *OPTIONS], "is a folder: name a file in it"),
        (["predict", "a.png", "--model=vit_nano_patch4_32", "--weights=absent.npz"], "there are no weights at absent"),
    ],
)
def test_what_can_not_be_done_is_a_message(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        commands.main(arguments)


def test_an_unknown_command_lists_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        commands.main(["sumary"])
    assert ended.value.code == 2
    assert "unknown command 'sumary': did you mean 'summary'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--options", "depth=2"], "summary: error: unknown argument '--options': did you mean '--option'?"),
        (["--mixer=agent"], "unknown argument '--mixer=agent': hyper-parameters of the model are given as --option"),
        (["mixer=agent"], "unknown argument 'mixer=agent': hyper-parameters of the model are given as --option"),
    ],
)
def test_an_unknown_argument_is_named_with_the_flag_that_was_meant(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        commands.main(["summary", "vit_nano_patch4_32", *given])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "[--option NAME=VALUE]" in printed  # the usage is that of the command


def test_mixers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    commands.main(["list", "--mixers"])
    assert capsys.readouterr().out.split() == layers.list_mixers()
    commands.main(["list", "mamba*", "--mixers"])
    assert capsys.readouterr().out.split() == ["mamba", "mamba2"]


def test_warnings_for_users_are_without_lines_of_code(capsys: pytest.CaptureFixture[str]) -> None:
    def warn(_: Any) -> None:
        warnings.warn("the head stays random", stacklevel=1)
        warnings.warn("not for users", DeprecationWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *given: sys.stderr.write(warnings.formatwarning(*given[:4]))
        commands.main(["warn"], {"warn": commands.Command("About.", lambda _: None, warn)})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warning: the head stays random"
    assert "DeprecationWarning: not for users" in lines[1]
    assert "test_command_line.py" in lines[1]


def test_summary(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["summary", "vit_nano_patch4_32", *OPTIONS, "--batch_size=8"]
    commands.main(asked)
    assert "kept MiB" in capsys.readouterr().out
    commands.main([*asked, "--blocks", "--json"])
    printed = json.loads(capsys.readouterr().out)
    want = zoo.summary("vit_nano_patch4_32", batch_size=8, show=False, **MICRO)
    assert [(row["name"], row["activations"]) for row in printed["rows"]] == [
        (r.name, r.activations) for r in want.rows
    ]
    assert printed["step_bytes"] == want.step_bytes


def test_convert_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo.create("vit_nano_patch4_32", param_dtype="bfloat16", **MICRO)
    ours, timms = tmp_path / "ours.safetensors", tmp_path / "timms.safetensors"
    zoo.save(model, ours, naming="zoo")
    named = ["--model=vit_nano_patch4_32", *OPTIONS]
    commands.main(["convert", str(timms), *named, f"--weights={ours}", "--naming=timm"])
    assert "under the names of 'timm'" in capsys.readouterr().out
    read = zoo.create("vit_nano_patch4_32", weights=timms, param_dtype="file", **MICRO)
    want, found = flatten(model), flatten(read)
    assert {name: array.dtype for name, array in found.items()} == {name: array.dtype for name, array in want.items()}
    assert all(np.array_equal(found[name], want[name]) for name in want)

    image = tmp_path / "image.png"
    Image.fromarray(np.arange(40 * 40 * 3, dtype=np.uint8).reshape(40, 40, 3)).save(image)
    commands.main(["predict", str(image), str(image), *named, f"--weights={timms}", "--top_k=2", "--json"])
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == second
    assert first["image"] == str(image)
    commands.main(["predict", str(tmp_path), *named, f"--weights={timms}", "--top_k=2", "--json"])
    assert json.loads(capsys.readouterr().out) == first  # of a folder, its images
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="holds no images"):
        commands.main(["predict", str(empty), *named, f"--weights={timms}"])
    classes = zoo.predict(zoo.create("vit_nano_patch4_32", weights=timms, **MICRO), [image, image], top_k=2)[0]
    assert [entry["name"] for entry in first["classes"]] == [name for name, _ in classes]


def test_predict_names_the_next_tokens_of_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo.create("transformer_nano", **MICRO)
    zoo.save(model, tmp_path / "a.safetensors", naming="zoo")
    weights = f"--weights={tmp_path / 'a.safetensors'}"
    commands.main(["predict", "def ", "--model=transformer_nano", weights, "--top_k=1", "--json", *OPTIONS])
    ((likeliest, probability),) = (
        (entry["name"], entry["probability"]) for entry in json.loads(capsys.readouterr().out)["next"]
    )
    logits = np.asarray(program(model)(np.array([[0, *b"def "]])), np.float64)[0, -1]
    assert likeliest == bytes([int(logits.argmax())]).decode(errors="replace")
    assert probability == pytest.approx(1 / np.exp(logits - logits.max()).sum(), rel=1e-4)


ROUTED = "--option=mixer={'name': 'bilevel_routing', 'regions': 4, 'topk': 3}"
CLUSTERED = "--option=mixer={'name': 'routing', 'clusters': 2, 'membership': 'causal'}"


@pytest.mark.parametrize(
    ("what", "model", "options"),
    [
        ("maps", "vit_nano_patch4_32", ()),
        ("rollout", "vit_nano_patch4_32", ()),
        ("routes", "vit_nano_patch4_32", (ROUTED, "--region=5")),
        ("clusters", "transformer_nano", (CLUSTERED,)),
    ],
)
def test_draw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, model: str, options: tuple[str, ...]
) -> None:
    pytest.importorskip("matplotlib")
    Image.new("RGB", (40, 40), "orange").save(tmp_path / "a.png")
    drawn = "the cat sat" if what == "clusters" else str(tmp_path / "a.png")
    arguments = ["draw", drawn, str(tmp_path / "out.png"), f"--what={what}"]
    commands.main([*arguments, f"--model={model}", *OPTIONS, *options])
    assert f"{what} of 1 mixers of {model}" in capsys.readouterr().out
    with Image.open(tmp_path / "out.png") as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize(
    ("output", "message"), [("a", "its suffix must name the picture's format"), ("none/a.png", "there is no folder")]
)
def test_a_picture_that_can_not_be_written_is_a_message(tmp_path: Path, output: str, message: str) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit, match=message):
        commands.main(["draw", "the cat", str(tmp_path / output), "--model=transformer_nano", *OPTIONS])
    assert list(tmp_path.iterdir()) == []


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    commands.main(["doctor"])
    printed = capsys.readouterr().out
    assert f"Mixer Zoo in {ROOT}" in printed
    assert "device " in printed
    monkeypatch.setattr(installation, "requirements", lambda: ["numpy>=99.1", "nothing_of_this_name"])
    with pytest.raises(
        SystemExit, match=r"(?s)numpy>=99.1: [\d.]+ is installed; .*nothing_of_this_name: not installed"
    ):
        commands.main(["doctor"])


def test_a_folder_that_shadows_the_library_is_refused(tmp_path: Path) -> None:
    for name in ("zoo", "tasks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT)))}
    done = subprocess.run(
        [sys.executable, "-m", "mixer_zoo", "list"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"zoo is {tmp_path / 'zoo'}; tasks is {tmp_path / 'tasks'}, not that of Mixer Zoo" in done.stderr
    assert installation.misplaced(["zoo"], tmp_path) == {"zoo": str(ROOT / "zoo")}


@pytest.mark.parametrize(
    ("name", "first"),
    [("vit_smal", "vit_small_patch8"), ("Resnet5", "resnet50"), ("atention", "attention"), ("xyz", None)],
)
def test_names_with_a_near_beginning_are_suggested(name: str, first: str | None) -> None:
    message = near(name, ["l2vit_small", "attention", "resnet50", "vit_small_patch8", "resnet152", "retention"])
    assert message == "" if first is None else message.startswith(f": did you mean '{first}'")
