"""The commands of ``python -m zoo`` and the code that runs a command; ``mixer-zoo`` adds the commands for training.

The exit status is 0 on success, 1 on failure, with one message on standard error, and 2 for bad arguments.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import fnmatch
import gc
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tokenization
from layers.mixer import list_mixers
from layers.state import flatten
from pictures import SUFFIXES
from primitives.memory import size
from suggestions import installation, near
from zoo.backbones.causal import Causal
from zoo.backbones.model import input_count
from zoo.creation import create, preprocess
from zoo.exporting import PLATFORMS, export, serialized
from zoo.figures import draw_clusters, draw_maps, draw_matrix, draw_over_image, draw_routes
from zoo.files import write_file
from zoo.generation import encoded, next_tokens
from zoo.inspection import attention_maps, attention_rollout, capture
from zoo.prediction import predict
from zoo.registry import Variant, list_models, variant
from zoo.sources import on_hub, run_record
from zoo.summaries import Summary, summary
from zoo.weights import save

_HOME = Path(__file__).resolve().parents[1]
Parser = argparse.ArgumentParser
_WORTH_KEEPING = 0.05
"""Seconds of compiling from which on a program is kept."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
      about: what it does, in one line.
      arguments: adds its arguments to a parser.
      run: runs it on parsed arguments; errors addressed to the user are a ValueError or OSError.
    """

    about: str
    arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], None]


def deliberate(error: BaseException) -> bool:
    """Whether an error is addressed to the user: an OSError, or a ValueError raised by this repository's code."""
    if isinstance(error, OSError):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = Path(trace.tb_frame.f_code.co_filename).resolve() if trace is not None else Path()
    return isinstance(error, ValueError) and raised_in.is_relative_to(_HOME)


def plain_warnings() -> None:
    """Prints warnings for users, those of the zoo among them, without a file and a line of code."""
    warnings.formatwarning = _formatted


_with_place = warnings.formatwarning


def _formatted(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    if category is UserWarning:
        return f"warning: {message}\n"
    return _with_place(message, category, filename, lineno, line)


def keep_compiled() -> None:
    """Caches compiled programs in the user's cache directory, unless JAX_COMPILATION_CACHE_DIR names another one or is
    empty (no cache): those that take at least 0.05 s to compile, unless JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS sets
    another limit.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(installation.caches()["compiled programs"]))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def main(
    arguments: Sequence[str] | None = None,
    commands: Mapping[str, Command] | None = None,
    prog: str = "python -m zoo",
) -> None:
    """Runs the command that the arguments name.

    Args:
      arguments: default: those of the process.
      commands: by name; default: those of this module.
      prog: the program's name in its messages.

    Raises:
      SystemExit: with the message if the command fails; with 2 for bad arguments.
    """
    table = COMMANDS if commands is None else commands
    parser = Parser(prog=prog, description="Mixer Zoo: models of attention and token mixing.")
    named = parser.add_subparsers(dest="command", metavar="COMMAND")
    given = list(sys.argv[1:] if arguments is None else arguments)
    for name, command in table.items():
        command.arguments(named.add_parser(name, help=command.about, description=command.about))
    if given and not given[0].startswith("-") and given[0] not in table:
        parser.error(f"unknown command {given[0]!r}{near(given[0], table)}; there are: {', '.join(table)}")
    options, rest = parser.parse_known_args(given)
    if options.command is None:
        parser.print_help(sys.stderr)
        sys.exit(2)
    _refuse(rest, named.choices[options.command])
    _run(table[options.command], options)


def alone(command: Command, prog: str, arguments: Sequence[str] | None = None) -> None:
    """Runs one command that has a script of its own; raises as :func:`main`."""
    parser = Parser(prog=prog, description=command.about)
    command.arguments(parser)
    options, rest = parser.parse_known_args(arguments)
    _refuse(rest, parser)
    _run(command, options)


def _refuse(rest: Sequence[str], parser: Parser) -> None:
    """Ends with 2 if arguments are left over: names the first one, with the flags near it and how options of the model
    are given.
    """
    if not rest:
        return
    flag = rest[0].partition("=")[0]
    known = re.findall(r"--\w+", parser.format_usage())
    hint = near(flag, known) if flag.startswith("-") else ""
    if not hint and "--option" in known:
        hint = ": hyper-parameters of the model are given as --option NAME=VALUE, such as --option mixer=agent"
    parser.error(f"unknown argument {rest[0]!r}{hint}")


def _run(command: Command, options: argparse.Namespace) -> None:
    try:
        installation.refuse_others()
        gc.freeze()  # imported objects stay: the garbage collector skips them from now on
        plain_warnings()
        keep_compiled()
        command.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if not deliberate(error):
            raise
        sys.exit(f"error: {error}")


def _list_arguments(parser: Parser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help='a name, or a pattern such as "vit_*"')
    parser.add_argument("--mixers", action="store_true", help="the names that mixer= takes, in place of models")
    parser.add_argument("--json", action="store_true", help="one JSON list of everything known about them")


def _list(given: argparse.Namespace) -> None:
    mixers = fnmatch.filter(list_mixers(), given.pattern)
    if given.mixers:
        if given.json:
            raise ValueError("--json lists what is known of models: leave out --mixers")
        if not mixers:
            raise ValueError(f"no mixer is named {given.pattern!r}{near(given.pattern, list_mixers())}")
        print("\n".join(mixers))
        return
    names = list_models(given.pattern)
    if not names and mixers:
        what = "mixers are" if len(mixers) > 1 else "a mixer is"
        raise ValueError(f"no model is named {given.pattern!r}, but {what}: --mixers lists mixers in place of models")
    if not names:
        raise ValueError(f"no model is named {given.pattern!r}{near(given.pattern, list_models())}")
    print(json.dumps([described(variant(name)) for name in names], indent=2) if given.json else "\n".join(names))


def described(entry: Variant) -> dict[str, Any]:
    """What is known about a model without building it, in JSON types."""
    config: Any = entry.config
    takes = {field: getattr(config, field) for field in ("image_size", "vocab_size") if hasattr(config, field)}
    return {
        "name": entry.name,
        "family": entry.family,
        **takes,
        "published": entry.published,
        "parameters": entry.parameters,
        "weights": {tag: release.source for tag, release in entry.releases.items()},
        "namings": [*entry.rules, "zoo"],
    }


def _model_arguments(parser: Parser, *, required: bool) -> None:
    without = "" if required else "; default: random ones"
    source = f"a run's folder, a file, a folder, a released name or hf://owner/name{without}"
    parser.add_argument("--model", help="a name of the list; not needed for a run")
    parser.add_argument("--weights", required=required, help=source)
    option_arguments(parser)


def option_arguments(parser: Parser) -> None:
    """Adds ``--option``, which :func:`options_of` reads."""
    use = "a hyper-parameter, such as mixer=agent; may be given several times"
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=use)


def options_of(given: argparse.Namespace) -> dict[str, Any]:
    """The hyper-parameters that the command line gives.

    Raises:
      ValueError: an option without a value, or with half a one.
    """
    found = {}
    for text in given.option:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--option {text}: give NAME=VALUE, as --option depth=2")
        found[name] = literal(f"--option {text}", value)
    return found


def literal(argument: str, value: str) -> Any:
    """The Python value that an argument's text stands for; the text itself if it stands for none.

    Raises:
      ValueError: a tuple, list or dict that Python does not read.
    """
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if value.startswith(("{", "[", "(")):
            raise ValueError(f"{argument}: Python does not read this value: is a bracket or a quote missing?") from None
        return value


def _make(given: argparse.Namespace, **more: Any) -> Any:
    if given.model is None and not given.weights:
        raise ValueError("give --model=NAME, one of those that `list` prints, or --weights=DIR, the folder of a run")
    if given.model is None and not on_hub(given.weights) and run_record(given.weights) is None:
        if not Path(given.weights).exists():
            raise ValueError(
                f"there are no weights at {given.weights}; the name of a released checkpoint needs --model=NAME too"
            )
        raise ValueError(
            f"{given.weights} does not say which model it is, as the folder of a run does: give --model=NAME, one of "
            f"those that `list` prints, and --option for what differs from it"
        )
    return create(given.model, weights=given.weights, **more, **options_of(given))


def _summary_arguments(parser: Parser) -> None:
    parser.add_argument("name", help="a name of the list")
    parser.add_argument("--input", type=int, nargs="+", metavar="SIZE", help="shape of one input, without the batch")
    parser.add_argument("--batch_size", type=int, default=1, help="of the step whose memory is estimated")
    parser.add_argument("--blocks", action="store_true", help="a row for every block, not for every stage")
    parser.add_argument("--json", action="store_true")
    option_arguments(parser)


def _summary(given: argparse.Namespace) -> None:
    shape = None if given.input is None else tuple(given.input)
    found: Summary = summary(given.name, shape, batch_size=given.batch_size, show=False, **options_of(given))
    found = found if given.blocks else found.by_stage()
    print(json.dumps(dataclasses.asdict(found), indent=2) if given.json else found)


def _predict_arguments(parser: Parser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="images of any size or their folders, or texts")
    _model_arguments(parser, required=True)
    parser.add_argument("--tokenizer", help="a tokenizer.json for texts; default: the run's, else bytes")
    parser.add_argument("--top_k", type=int, default=5, help="how many classes, or next tokens, to name")
    parser.add_argument("--batch_size", type=int, default=32, help="images at a time")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _predict(given: argparse.Namespace) -> None:
    if given.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {given.batch_size}")
    model = _make(given)
    if isinstance(model, Causal):
        tokenizer = tokenization.create(given.tokenizer) if given.tokenizer else None
        for text in given.inputs:
            _show(given, "text", text, "next", next_tokens(model, text, given.top_k, tokenizer=tokenizer))
        return
    if not hasattr(model.config, "image_size"):
        raise ValueError(
            f"{model.variant} neither classifies images nor continues texts: call the model in Python with the tokens"
        )
    from tqdm import tqdm

    files = [file for path in given.inputs for file in _images(path)]
    hidden = given.quiet or not sys.stderr.isatty() or len(files) <= given.batch_size
    for start in tqdm(range(0, len(files), given.batch_size), unit="batch", disable=hidden):
        batch = files[start : start + given.batch_size]
        # A smaller last batch would compile a second program.
        full = [*batch, *[batch[-1]] * (min(given.batch_size, len(files)) - len(batch))]
        for path, found in zip(batch, predict(model, full, batch_size=len(full), top_k=given.top_k), strict=False):
            _show(given, "image", path, "classes", found)


def _images(path: str) -> list[str]:
    """The images directly in a folder; of any other path, the path alone."""
    if not Path(path).is_dir():
        return [path]
    found = sorted(str(file) for file in Path(path).iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"the folder {path} holds no images ({', '.join(SUFFIXES)})")
    return found


def _show(given: argparse.Namespace, kind: str, thing: str, what: str, found: list[tuple[str, float]]) -> None:
    if given.json:
        print(json.dumps({kind: thing, what: [{"name": name, "probability": p} for name, p in found]}))
    else:
        shown = [(repr(name) if kind == "text" else name, p) for name, p in found]
        print(f"{thing}: " + ", ".join(f"{name} {p:.3f}" for name, p in shown))


def _draw_arguments(parser: Parser) -> None:
    parser.add_argument("input", metavar="INPUT", help="the file of an image, or a text")
    parser.add_argument("output", type=Path, help="the file of the picture, such as attention.png")
    _model_arguments(parser, required=False)
    parser.add_argument("--tokenizer", help="a tokenizer.json for a text; default: the run's, else bytes")
    use = (
        "the weights of every mixer; what reaches the first token through all layers; the regions of an image that one "
        "of them attends to; the clusters of a text's tokens"
    )
    parser.add_argument("--what", choices=("maps", "rollout", "routes", "clusters"), default="maps", help=use)
    parser.add_argument("--region", type=int, help="the region whose routes are drawn; default: the middle one")


def _draw(given: argparse.Namespace) -> None:
    model = _make(given)
    is_image = hasattr(model.config, "image_size")
    if input_count(model) > 1:
        raise ValueError(
            f"{model.variant} reads a source and a target: zoo.attention_maps(model, (source, target)) gives its maps"
        )
    if is_image:
        x = preprocess(model)([given.input])
    else:
        x = np.asarray(encoded(model, given.input, tokenizer=given.tokenizer), np.int32)[None]
    if given.what == "routes":
        if not is_image:
            raise ValueError("--what=routes draws the regions of an image; of a text there are clusters")
        found: Mapping[str, Any] = capture(model, x, "routes")
        figure = draw_routes(x[0], found, given.region)
    elif given.what == "clusters":
        found = capture(model, x, "members")
        figure = draw_clusters(found, model.extents[0][0] * model.extents[0][1] if is_image else x.shape[1])
    else:
        found = attention_maps(model, x)
        if given.what == "maps":
            figure = draw_maps(found)
        elif is_image:
            flow = attention_rollout(found)[0]  # models of several stages are refused here
            grid = model.extents[0]
            figure = draw_over_image(x[0], flow[0], grid, title="rollout to the first token")
        else:
            figure = draw_matrix(attention_rollout(found)[0], "rollout")
    if given.output.suffix[1:].lower() not in (endings := figure.canvas.get_supported_filetypes()):
        raise ValueError(f"{given.output}: its suffix must name the picture's format: .{', .'.join(endings)}")
    if not given.output.parent.is_dir():
        raise ValueError(f"there is no folder {given.output.parent} to write {given.output.name} in: make it first")
    figure.savefig(given.output, dpi=120)
    print(f"{given.output}: {given.what} of {len(found)} mixers of {model.variant}")


def _export_arguments(parser: Parser) -> None:
    parser.add_argument("output", type=Path, help="the file")
    _model_arguments(parser, required=False)
    parser.add_argument("--form", default="stablehlo", help="stablehlo, which jax.export.deserialize reads")
    parser.add_argument("--input", type=int, nargs="+", metavar="SIZE", help="shape of one input, without the batch")
    parser.add_argument("--batch_size", type=int, help="the same for all calls; default: any")
    parser.add_argument("--platforms", default=",".join(PLATFORMS), help="platforms that it can run on")


def _export(given: argparse.Namespace) -> None:
    model = _make(given)
    shape = None if given.input is None else tuple(given.input)
    platforms = given.platforms.split(",")
    exported = export(model, given.form, input_shape=shape, batch_size=given.batch_size, platforms=platforms)
    data = serialized(exported)
    write_file(given.output, data)
    takes, gives = (", ".join(map(str, avals)) for avals in (exported.in_avals, exported.out_avals))
    print(f"{given.output}: {model.variant}, {size(len(data))}, {takes} to {gives}, for {', '.join(platforms)}")


def _convert_arguments(parser: Parser) -> None:
    parser.add_argument("output", type=Path, help="a .safetensors or .npz file, replaced as a whole")
    _model_arguments(parser, required=True)
    parser.add_argument("--naming", help="the names to write; default: the architecture's first; zoo: our own")


def _convert(given: argparse.Namespace) -> None:
    model = _make(given, param_dtype="file")
    naming = given.naming or next(iter([*variant(model.variant).rules, "zoo"]))
    save(model, given.output, naming=naming)
    print(f"{given.output}: {model.variant} under the names of {naming!r}, {len(flatten(model))} arrays")


COMMANDS = {
    "list": Command("Lists the models, or the mixers.", _list_arguments, _list),
    "summary": Command(
        "Shows what a model costs: parameters, operations, memory of a step.", _summary_arguments, _summary
    ),
    "predict": Command(
        "Classifies images, or lists the most likely next tokens of texts.", _predict_arguments, _predict
    ),
    "draw": Command(
        "Draws the attention, routes or clusters of a model over an image or a text.", _draw_arguments, _draw
    ),
    "export": Command("Writes a model as one file that runs without the zoo.", _export_arguments, _export),
    "convert": Command("Writes weights under other names.", _convert_arguments, _convert),
    "doctor": Command(
        "Shows what is installed, what is missing, and how to get it.", lambda _: None, lambda _: installation.doctor()
    ),
}
"""The commands by name."""
