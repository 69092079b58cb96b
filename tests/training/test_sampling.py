"""Text from a run and from a weights file, by the command that users type."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

import tokenization
import zoo
from training import assembly, loop, sampling

TEXT = "the quick brown fox jumps over the lazy dog\n" * 200
PIECE = 8  # new tokens: a command writes so many at a time, and one program serves all


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on a text file."""
    from configs import transformer

    root = tmp_path_factory.mktemp("run")
    (root / "text.txt").write_text(TEXT)
    config: ConfigDict = transformer.get_config(f"text,path={root / 'text.txt'}")
    config.update(
        {"train_for": "30 steps", "schedule": {"warmup": "3 steps"}, "batch_size": 8, "eval_every": "", "workers": 0}
    )
    config.task.update({"sequence_length": 32, "prompt": "the quick"})
    config.optimizer.learning_rate = 1e-2
    config.model_options = ConfigDict({"features": 32, "depth": 1, "num_heads": 2})
    task, model = assembly.build(config)
    loop.train(config, model, task, root / "workdir", record=assembly.record(config, task))
    assert sampling.sample(task, model, PIECE).startswith("the quick|")
    return root


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    sampling.main(list(arguments))
    return capsys.readouterr().out


def test_text_from_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = f"--workdir={run / 'workdir'}"
    greedy = printed(
        capsys, workdir, "--prompt=the quick", "--temperature=0", f"--max_new_tokens={PIECE}", "--keep_going"
    )
    assert greedy.startswith("the quick")
    _, model = assembly.build(sampling.read_config(run / "workdir"))
    sampling.evaluation.load(sampling.read_config(run / "workdir"), model, run / "workdir")
    tokens = zoo.generate(model, [[0, *b"the quick"]], PIECE, temperature=0).rows()[0]
    assert greedy == "the quick" + bytes(tokens).replace(b"\0", b"").decode(errors="replace") + "\n"
    first, again, other = (
        printed(capsys, workdir, "--prompt=the", "--temperature=2", f"--max_new_tokens={3 * PIECE}", f"--seed={seed}")
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_text_from_python(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run has its tokenizer; the command has the same options."""
    model = zoo.create(weights=run / "workdir")
    options = {"temperature": 0, "repetition_penalty": 1.2, "stop": ()}
    (text,) = zoo.generate(model, ["the quick"], PIECE, **options).texts
    command = (
        f"--workdir={run / 'workdir'}",
        "--prompt=the quick",
        "--temperature=0",
        f"--max_new_tokens={PIECE}",
        "--repetition_penalty=1.2",
        "--keep_going",
    )
    assert printed(capsys, *command) == f"the quick{text}\n"
    stop = text[4:6]
    before = text.partition(stop)[0]
    assert zoo.generate(model, ["the quick"], PIECE, **{**options, "stop": [stop]}).texts == [before]
    assert printed(capsys, *command, f"--stop={stop}", "--stop=\t") == f"the quick{before}\n"


@pytest.mark.full
def test_text_when_the_data_and_the_tokenizer_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from configs import transformer

    text, file = tmp_path / "text.txt", tmp_path / "words.json"
    text.write_text(TEXT)
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(["</s>", *sorted(set(TEXT.split()))])}, "</s>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(file))
    config: ConfigDict = transformer.get_config(f"text,path={text}")
    config.update(
        {"train_for": "4 steps", "schedule": {"warmup": "1 steps"}, "batch_size": 4, "eval_every": "", "workers": 0}
    )
    config.task.update({"sequence_length": 16, "prompt": "the quick", "tokenizer": str(file)})
    config.model_options = ConfigDict({"features": 16, "depth": 1, "num_heads": 2})
    task, model = assembly.build(config)
    workdir = tmp_path / "workdir"
    loop.train(config, model, task, workdir, record=assembly.record(config, task))
    text.unlink()
    file.unlink()
    (found,) = zoo.generate(zoo.create(weights=workdir), "the quick", PIECE, temperature=0, stop=()).texts
    assert set(found.split()) <= set(TEXT.split())
    options = ("--prompt=the quick", "--temperature=0", f"--max_new_tokens={PIECE}", "--keep_going")
    assert printed(capsys, f"--workdir={workdir}", *options) == f"the quick{found}\n"
    assert printed(capsys, f"--workdir={workdir}", "--checkpoint=4", *options) == f"the quick{found}\n"
    with pytest.raises(SystemExit, match=r"checkpoints/9"):
        printed(capsys, f"--workdir={workdir}", "--checkpoint=9", *options)


@pytest.mark.full
def test_text_from_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo.create("transformer_nano", depth=1)
    zoo.save(model, tmp_path / "model.safetensors")
    options = (
        "--model=transformer_nano",
        "--option=depth=1",
        f"--weights={tmp_path / 'model.safetensors'}",
        "--temperature=0",
        "--keep_going",
        "--max_new_tokens=9",
    )
    expected = bytes(zoo.generate(model, [[0, *b"ab"]], 9, temperature=0).rows()[0]).replace(b"\0", b"")
    assert printed(capsys, *options, "--prompt=ab") == "ab" + expected.decode(errors="replace") + "\n"


def test_the_prompt_from_standard_input(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("over the"))
    assert printed(capsys, f"--workdir={run / 'workdir'}", "--prompt=-", f"--max_new_tokens={PIECE}").startswith(
        "over the"
    )


def test_a_sample_fits_the_positions_of_the_model() -> None:
    class Task:
        tokenizer = tokenization.create(None)

        def sample_prompt(self) -> list[int]:
            return [*b"a prompt longer than the model"]

        def decode(self, tokens: Any) -> str:
            return bytes(tokens).decode(errors="replace")

    model = zoo.create("gpt2_nano", max_length=16, features=16, depth=1, num_heads=2)
    assert sampling.sample(Task(), model).startswith("a prompt|")  # type: ignore[arg-type]


def test_other_tasks_have_no_sample() -> None:
    assert sampling.sample(object(), object()) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either --workdir=DIR, or --model=NAME"),
        (("--model=transformer_nano",), "--weights is missing"),
        (("--model=transformer_nan", "--weights=x"), "did you mean"),
        (("--model=transformer_nano", "--weights=x"), "unknown weights 'x'"),
        (("--model=biformer_nano", "--weights=x"), "biformer_nano is not a language model"),
        (("--workdir=/nowhere",), "has no config.json"),
        (("--workdir=/nowhere", "--option=depth=1"), "--option is for --model"),
        (("--workdir=/nowhere", "--tokenizer=x"), "--tokenizer is for --model"),
        (("--workdir=/nowhere", "--weights=x"), "--weights is for --model"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        sampling.main(list(arguments))
    assert message in str(refusal.value)
