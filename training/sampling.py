"""Text from a trained model: the sample at the end of a run, and the command ``mixer-zoo generate`` or ``python
generate.py``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import tokenization
import zoo
from tasks import Task
from training import assembly, evaluation
from training.workdir import read_config
from zoo import commands
from zoo.sources import run_record, run_tokenizer

SAMPLE_TOKENS = 400
"""Tokens of a sample; fewer where the model has no positions for so many."""


@runtime_checkable
class WritesText(Protocol):
    """A task whose models generate text: the interface that the sample at the end of a run needs.

    Attributes:
      tokenizer: the tokenizer of its tokens.
    """

    tokenizer: tokenization.Tokenizer

    def sample_prompt(self) -> list[int]:
        """Returns the tokens that the sample continues."""
        ...

    def decode(self, tokens: Any) -> str:
        """Decodes tokens to text."""
        ...


def _room(model: Any, prompt: int) -> int:
    """How many tokens follow a prompt of so many if nobody says how many."""
    return min(SAMPLE_TOKENS, max((model.most_tokens or prompt + SAMPLE_TOKENS) - prompt, 1))


def sample(task: Task, model: Any, new_tokens: int | None = None) -> str:
    """The text that ``model`` generates from the task's prompt (:class:`WritesText`); "" for tasks without one.

    The prompt is included, separated from the generated text by "|".
    """
    if not isinstance(task, WritesText):
        return ""
    prompt = task.sample_prompt()
    if model.most_tokens is not None:
        prompt = prompt[: model.most_tokens // 2]
    new_tokens = _room(model, len(prompt)) if new_tokens is None else new_tokens
    written = zoo.generate(
        model, [prompt], new_tokens, temperature=0.8, top_p=0.95, stop=task.tokenizer.separator
    ).rows()[0]
    return f"{task.decode(prompt)}|{task.decode(written)}"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", help="a run of train.py")
    parser.add_argument("--checkpoint", default="last", help='the checkpoint of the run: "last", "best" or a step')
    parser.add_argument("--model", help="a name of zoo.list_models(), with --weights")
    parser.add_argument("--weights", help="a file, folder or hf://owner/name")
    commands.option_arguments(parser)
    parser.add_argument("--quantize", help="keep the weights as int8 or bfloat16")
    parser.add_argument("--tokenizer", help="a tokenizer.json, with --model; default: bytes")
    parser.add_argument("--prompt", default="", help="the text to continue; - reads standard input")
    parser.add_argument("--source", help="the text that an encoder-decoder reads; - reads standard input")
    parser.add_argument(
        "--max_new_tokens", type=int, help=f"default {SAMPLE_TOKENS}, or as many as the model has positions for"
    )
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the most probable token")
    parser.add_argument("--top_k", type=int)
    parser.add_argument("--top_p", type=float, default=0.95)
    parser.add_argument("--min_p", type=float, help="excludes tokens below this fraction of the largest probability")
    parser.add_argument("--repetition_penalty", type=float, help="above 1 makes tokens already in the text less likely")
    parser.add_argument(
        "--stop", action="append", default=[], help="a string before which the text ends; may be given several times"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep_going", action="store_true", help="do not stop at the end of the document")


def _from_run(workdir: Path, checkpoint: str) -> tuple[Any, Any]:
    if run_record(workdir) and (options := run_tokenizer(workdir)) is not None:
        place = {"last": workdir, "best": workdir / "best"}.get(checkpoint, workdir / "checkpoints" / checkpoint)
        if not place.is_dir():
            raise ValueError(
                f'there is no checkpoint {place}: --checkpoint is "last", "best" or a step of {workdir / "checkpoints"}'
            )
        return zoo.create(weights=place), tokenization.create(**options)
    config = read_config(workdir)  # a run of an older version: rebuilding its task needs the data
    task, model = assembly.build(config, weights="")
    if not isinstance(task, WritesText):
        raise ValueError(f"{workdir} is a run of the task {config.task.name!r}, which is not text")
    evaluation.load(config, model, workdir, checkpoint)
    return model, task.tokenizer


def _from_weights(name: str, weights: str, tokenizer: str | None, options: dict[str, Any]) -> tuple[Any, Any]:
    encoding = tokenization.create(tokenizer)
    size = options.get("vocab_size", getattr(zoo.variant(name).config, "vocab_size", None))
    if size is None:
        raise ValueError(f"{name} is not a language model: zoo.list_models() lists all")
    if encoding.vocab_size > size:
        raise ValueError(
            f"the tokenizer has {encoding.vocab_size} tokens, {name} has {size}: name the model's own with --tokenizer"
        )
    if tokenizer is None and size != encoding.vocab_size:
        raise ValueError(f"{name} has {size} tokens, not bytes: name its tokenizer.json with --tokenizer")
    return zoo.create(name, weights=weights, **options), encoding


def _generate(given: argparse.Namespace) -> None:
    if bool(given.workdir) == bool(given.model):
        raise ValueError("give either --workdir=DIR, or --model=NAME with --weights=FILE")
    if given.model and not given.weights:
        raise ValueError("--weights is missing: a file, folder or hf://owner/name with the weights of --model")
    if given.workdir:
        if given.option:
            raise ValueError("--option is for --model: a run has its own hyper-parameters")
        for name in ("weights", "tokenizer"):
            if getattr(given, name):
                raise ValueError(f"--{name} is for --model: a run has its own")
        model, tokenizer = _from_run(Path(given.workdir), given.checkpoint)
    else:
        model, tokenizer = _from_weights(given.model, given.weights, given.tokenizer, commands.options_of(given))
    if given.quantize is not None:
        zoo.quantize(model, given.quantize)
    text, source = (sys.stdin.read() if told == "-" else told for told in (given.prompt, given.source))
    end = tokenizer.separator if source is None else getattr(model.config, "end_token", None)
    stops = [*given.stop, *([] if given.keep_going or end is None else [end])]
    prompt = text if source is None or text else None
    before = [tokenizer.separator] if source is None else []
    before += tokenizer.encode(text.encode()).tolist()
    new_tokens = _room(model, max(len(before), 1)) if given.max_new_tokens is None else given.max_new_tokens
    pieces = zoo.stream(
        model, prompt, new_tokens, source=source, temperature=given.temperature, top_k=given.top_k,
        top_p=given.top_p, min_p=given.min_p, repetition_penalty=given.repetition_penalty, stop=stops,
        tokenizer=tokenizer, rngs=given.seed,
    )  # fmt: skip
    sys.stdout.write(text)
    new = (piece[0] if source is None else piece[0][piece[0] != end] for piece in pieces)
    for part in tokenization.streamed(tokenizer, new, before, given.stop):
        sys.stdout.write(part)
        sys.stdout.flush()
    sys.stdout.write("\n")


GENERATE = commands.Command("Continues a text.", _arguments, _generate)
"""The command ``generate``."""


def main(arguments: list[str] | None = None) -> None:
    """Runs ``python generate.py``."""
    commands.alone(GENERATE, "python generate.py", arguments)
