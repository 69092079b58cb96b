"""What train.py and eval.py share: checked flags with clear messages, and errors as one message instead of a
traceback.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import importlib.util
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from suggestions import near, unknown
from zoo.commands import deliberate, keep_compiled, literal, plain_warnings

_HOME = Path(__file__).resolve().parent.parent


def _drop_late_callbacks() -> None:
    """Silences callbacks that reach Orbax's event loops after a failed save has closed them; the failure itself is
    raised.
    """
    otherwise = sys.unraisablehook

    def hook(report: Any) -> None:
        if not (isinstance(report.exc_value, RuntimeError) and "Event loop is closed" in str(report.exc_value)):
            otherwise(report)

    sys.unraisablehook = hook


@contextlib.contextmanager
def one_message() -> Iterator[None]:
    """Turns an error meant for the user into its message on standard error and exit status 1; others keep their
    traceback.
    """
    _drop_late_callbacks()
    # Orbax leaves the later failures of a save to asyncio, which logs each with a traceback; the loop reports the first
    # one.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command with the same --workdir continues from the last checkpoint")
    except Exception as error:
        message = f"error: {error}" if deliberate(error) else _out_of_memory(error)
        if jax.process_count() > 1:
            _abandon(error, message)
        if message is None:
            raise
        sys.exit(message)


def _out_of_memory(error: Exception) -> str | None:
    """The message if a device ran out of memory."""
    if not isinstance(error, jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" not in str(error):
        return None
    return (
        f"error: out of memory: {str(error).splitlines()[0]}. Try a smaller --config.batch_size, a greater "
        f"--config.accumulate (same result, microbatches), --config.remat=dots or block, a smaller model or shorter "
        f"inputs"
    )


def _abandon(error: Exception, message: str | None) -> None:
    """Ends one of several processes immediately: a clean exit would wait for the others, which may be waiting for this
    one or be gone.
    """
    traceback.print_exception(error)
    # The JAX runtime reports a lost process with these words, in exceptions of various types.
    if any(
        sign in str(error) for sign in ("Gloo", "coordination service", "heartbeat", "UNAVAILABLE", "DEADLINE_EXCEEDED")
    ):
        message = (
            f"error: process {jax.process_index()} of {jax.process_count()} has lost another process of the run (above "
            f"is how it noticed). "
            "Start all of them again with the same command and --workdir: the run continues from the last checkpoint"
        )
    print(message or "", file=sys.stderr, flush=True)
    os._exit(1)


def _load(value: str) -> ConfigDict:
    """The config that ``--config=FILE:ARGUMENT`` names."""
    path, _, argument = value.partition(":")
    if not Path(path).is_file():
        hint = near(Path(path).stem, [file.stem for file in _config_files()])
        hint = re.sub(r"'(\w+)'", r"configs/\1.py", hint) or "; without arguments train.py lists them"
        raise FileNotFoundError(f"--config={value}: there is no file {path}{hint}")
    spec = importlib.util.spec_from_file_location("config_of_the_command", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config={value}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"--config={value}: {path} is not Python: {error.msg}, line {error.lineno}") from error
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(
            f"--config={value}: {path} is not a config file: it does not define get_config(); train.py without "
            f"arguments lists the config files"
        )
    return module.get_config(argument) if argument else module.get_config()


def check_fields(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Refuses ``--config.FIELD`` where the config has no such field.

    Raises:
      ValueError: there is no such field (the message suggests similar names), or it is a group of fields.
    """
    for argument in arguments:
        if not argument.startswith(("--config.", "-config.")):
            continue
        path = argument.split("=", 1)[0].split("config.", 1)[1]
        node: Any = config
        for depth, part in enumerate(parts := path.split(".")):
            name = part.split("[", 1)[0]
            if not isinstance(node, ConfigDict) or name not in node:
                known = list(node.keys()) if isinstance(node, ConfigDict) else []
                said = unknown("field of config" + "".join(f".{p}" for p in parts[:depth]), name, known)
                if "did you mean" not in said:
                    elsewhere = [f"--config.{field}" for field in _fields(config) if field.split(".")[-1] == parts[-1]]
                    more = f"; {' or '.join(elsewhere)} is one" if elsewhere else ""
                    said += f"{more}; hyper-parameters of the model are given as --config.model_options.NAME=VALUE"
                raise ValueError(f"--config.{path}: {said}")
            node = node[name]
        value = argument.partition("=")[2]
        if isinstance(node, ConfigDict) and not value.startswith("{"):
            raise ValueError(
                f"--config.{path} is a group of fields, of which --config.{path}.NAME=VALUE sets one: "
                f"{', '.join(node)}; data of your own come after the config file's name: {_OWN}"
            )


_OWN = "--config=configs/vit.py:folder,path=DIR or --config=configs/mamba.py:text,path=FILE"
_OPTION = re.compile(r"--?config\.(model_options|optimizer\.options|aux_losses)\.(\w+)=(.*)", re.DOTALL)
_options: dict[str, dict[str, Any]] = {}


_VALUED = re.compile(r"--?config(\.(model_options|optimizer\.options|aux_losses)\.\w+)?")


def _joined(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``--config FILE`` as ``--config=FILE``, and the hyper-parameters in the same way."""
    rest, joined = iter(arguments), []
    for argument in rest:
        value = next(rest, None) if _VALUED.fullmatch(argument) else None
        joined.append(argument if value is None else f"{argument}={value}")
    return joined


def _take_options(arguments: Sequence[str]) -> list[str]:
    """Stores ``--config.model_options.NAME=VALUE`` and the like for :func:`required` and returns the other arguments:
    the config does not list the hyper-parameters of models and optimizers, so that its own parser would refuse them.
    """
    rest = []
    for argument in _joined(arguments):
        if found := _OPTION.fullmatch(argument):
            options = _options.setdefault(found[1], {})
            options[found[2]] = literal(argument, found[3])
        else:
            rest.append(argument)
    return rest


def parse(arguments: Sequence[str]) -> list[str]:
    """The flags parser of the commands: reports a missing config file, a wrong argument or an unknown field in one
    message.
    """
    config: ConfigDict | None = None
    with one_message():
        for value in (a.split("=", 1)[1] for a in arguments if a.startswith(("--config=", "-config="))):
            config = _load(value)
            check_fields(config, arguments)
        try:
            return flags.FLAGS(list(arguments))
        except flags.UnrecognizedFlagError as error:
            raise ValueError(_unknown_flag(error.flagname, config)) from None
        except flags.Error as error:
            raise ValueError(_reworded(str(error))) from None


def _fields(config: ConfigDict, prefix: str = "") -> list[str]:
    """The dotted names of all fields."""
    found: list[str] = []
    for name, value in config.items():
        found += _fields(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [prefix + name]
    return found


def _unknown_flag(name: str, config: ConfigDict | None) -> str:
    """The message for a flag that there is not: it may be a field of the config."""
    wanted = name.split(".", 1)[-1].rpartition(".")[2]
    fields = [] if config is None else _fields(config)
    if meant := [path for path in fields if path.rpartition(".")[2] == wanted]:
        flag = " or ".join(f"--config.{path}=VALUE" for path in meant)
        return f"unknown flag --{name}: the config has a field of this name, which is given as {flag}"
    ours = [own.name for own in flags.FLAGS.flags_by_module_dict().get(sys.argv[0], ())]
    hint = re.sub(r"'([\w.]+)'", r"--\1", near(name, [*ours, *(f"config.{path}" for path in fields)]))
    return f"unknown flag --{name}{hint}{'' if hint else ': --help shows the flags'}"


_WORDS = {
    r"invalid literal for int\(\) with base \d+: .*": "it takes a whole number",
    r"could not convert string to float: .*": "it takes a number",
    r"\('Non-boolean argument to boolean flag', .*\)": "it takes true or false",
}


def _reworded(message: str) -> str:
    """absl's message on the value of a flag, without what Python's own parsers said."""
    found = re.fullmatch(r"flag (--[^=]+=.*?): (.*)", message, re.DOTALL)
    if found is None:
        return message
    reason = next((words for said, words in _WORDS.items() if re.fullmatch(said, found[2], re.DOTALL)), found[2])
    return f"{found[1]}: {reason}"


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs ``main``; keeps compiled programs between runs."""
    with one_message():
        sys.argv[:] = _take_options(sys.argv)  # before the config's own parser reads them; sys.orig_argv has all

    def guarded(arguments: list[str]) -> None:
        with one_message():
            if arguments[1:]:
                raise ValueError(f"unknown argument {arguments[1]!r}: flags begin with --; --help lists them")
            main()

    gc.freeze()  # imported objects stay: the garbage collector skips them from now on
    plain_warnings()
    keep_compiled()
    absl_logging.set_verbosity(absl_logging.WARNING)  # libraries report every file that they open
    app.run(guarded, flags_parser=parse)


def _config_files() -> list[Path]:
    return [path for path in sorted((_HOME / "configs").glob("*.py")) if "def get_config" in path.read_text()]


def configs() -> str:
    """A line for each config file of this repository."""
    lines = []
    for path in _config_files():
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        about = " ".join(text.split("\n\n")[0].split())
        lines.append(f"  --config=configs/{path.name:<24} {about}")
    more = f"  after the file's name what to train on: {_OWN}; configs/common.py explains all"
    return "\n".join([*lines, more])


def required(name: str) -> Any:
    """The value of a required flag; a config also receives the hyper-parameters of the model and the optimizer that
    were given on the command line.

    Raises:
      ValueError: the flag is not given.
    """
    value = flags.FLAGS[name].value
    if value is None:
        listed = f"\n{configs()}" if name == "config" else ""
        raise ValueError(f"--{name} is missing: --help shows the flags{listed}")
    for field, options in _options.items() if isinstance(value, ConfigDict) else ():
        *parents, last = field.split(".")
        node = functools.reduce(getattr, parents, value)
        node[last] = ConfigDict({**node[last].to_dict(), **options})
    return value
