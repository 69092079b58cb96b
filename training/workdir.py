"""The working directory of a run: its config, its environment, and whether a command may resume it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from layers.rematerialization import NOTHING, policy
from training.processes import leads, together
from zoo.sources import RECORD, TOKENIZER

INERT = frozenset(
    {"patience", "log_every", "save_every", "workers", "mesh", "distributed", "keep", "profile", "nonfinite"}
)
"""Fields that do not affect the results computed so far."""
DURATIONS = frozenset({"train_for", "eval_every"})
"""Fields that may change when a run is extended."""
ADDED: dict[str, Any] = {
    "patience": 0,
    "optimizer": {"rounding": "master"},
    "task": {
        "class_weights": "", "packing": False, "order": "shuffled",
        "distillation": {"teacher": {"name": "", "weights": ""}, "kind": "hard", "weight": 0.5, "temperature": 1.0},
    },
}  # fmt: skip
"""Fields that older runs do not have, with the values that reproduce their behavior."""
LOCK = "lock"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "ml_collections")


def plain(config: Any) -> Any:
    """A config as read back from JSON: dictionaries, lists, strings, numbers."""
    return json.loads(config.to_json_best_effort() if isinstance(config, ConfigDict) else json.dumps(config))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted field, old value, new value) for the fields in which two plain configs differ."""
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{name}.")
        elif a != b or (name in old) != (name in new):
            yield prefix + name, a, b


def begun(path: Path) -> bool:
    """Whether a directory holds a run with at least one checkpoint."""
    return (path / "config.json").exists() and any(path.glob("checkpoints/[0-9]*"))


@contextlib.contextmanager
def locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Creates a working directory and locks it against a second run until the block or the process ends.

    The leading process holds the lock. Where the system or the file system does not support locks, ``say`` is called
    with a warning, and other runs are not excluded.

    Raises:
      ValueError: another run holds the lock.
      OSError: the directory can't be written.
    """
    if not leads():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((path / LOCK).open("a+"))
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            import fcntl  # not on Windows

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "just started"
            raise ValueError(
                f"{path} is in use by another run ({holder}): wait for its end, or choose another --workdir"
            ) from None
        except (OSError, ImportError) as error:
            say(f"{path} can't be locked ({error}): see that no second run uses it")
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
        yield


def write_json(path: Path, content: Any) -> None:
    """Writes a file atomically."""
    _write(path, (json.dumps(content, indent=2) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _unwritable(path: Path, error: OSError) -> OSError:
    return OSError(
        f"can't write to the working directory {path}: {error.strerror or error}; choose another with --workdir"
    )


def open_workdir(
    path: Path,
    config: ConfigDict,
    *,
    extend: bool = False,
    record: Mapping[str, Any] | None = None,
    tokenizer: bytes = b"",
) -> None:
    """Creates the directory, or checks that it holds a run of this config; writes the config, the model's record and
    its tokenizer file.

    Args:
      path: the working directory.
      config: the config of the run.
      extend: allow the durations to differ.
      record: the model's record (:func:`training.assembly.record`); None writes none.
      tokenizer: content of the tokenizer file; empty writes none.

    Raises:
      ValueError: it holds checkpoints of another config; the message lists the differing fields.
      OSError: it can't be written.
    """
    new = plain(config)
    if begun(path):
        changed = [
            d
            for d in differences(_completed(read_config(path).to_dict()), _completed(new))
            if d[0].split(".")[0] not in INERT
        ]
        barred = [d for d in changed if not (extend and d[0] in DURATIONS)]
        if barred:
            listed = "\n".join(f"  {field}: {json.dumps(a)} there, {json.dumps(b)} here" for field, a, b in barred)
            hint = (
                "add --extend to continue with the new durations"
                if all(d[0] in DURATIONS for d in barred)
                else "use another --workdir, or the old values"
            )
            raise ValueError(f"{path} holds a run of another config:\n{listed}\n{hint}")
    together("workdir checked")
    if not leads():
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name, content in (("config.json", new), *([] if record is None else [(RECORD, record)])):
            write_json(path / name, content)
        if tokenizer:
            _write(path / TOKENIZER, tokenizer)
    except OSError as error:
        raise _unwritable(path, error) from error


def _completed(old: dict[str, Any]) -> dict[str, Any]:
    """The config of an older run, completed by the fields that were added later."""
    found: dict[str, Any] = {
        **ADDED,
        **{name: {**ADDED.get(name, {}), **value} if isinstance(value, dict) else value for name, value in old.items()},
        "remat": policy(old.get("remat", NOTHING)),  # older runs have True or False
    }
    optimizer = found.get("optimizer", {})
    if isinstance(factors := optimizer.get("multipliers"), dict):  # older runs have a mapping
        found["optimizer"] = {**optimizer, "multipliers": [list(pair) for pair in factors.items()]}
    return found


def read_config(path: Path) -> ConfigDict:
    """The config of the run in ``path``.

    Raises:
      FileNotFoundError: there is none.
    """
    record = path / "config.json"
    if not record.is_file():
        raise FileNotFoundError(f"{path} is not the working directory of a run: it has no config.json")
    return ConfigDict(json.loads(record.read_text()))


def environment(config: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, devices, the state of the source tree, the seed and the command."""
    devices = jax.devices()
    return {
        "command": sys.orig_argv,
        "seed": config["seed"],
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "git": _git(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """The commit of the source tree and whether it has uncommitted changes; None outside a repository."""

    def ask(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {
            "commit": ask("rev-parse", "HEAD"),
            "changed": bool(ask("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
