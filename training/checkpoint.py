"""Checkpoints: asynchronous, atomic, checked when read (Orbax).

``checkpoints/STEP`` holds the newest few states, ``best/STEP`` the weights with the best validation figure. An
interrupted save leaves nothing under a step's name. Orbax detects a truncated file but not a flipped bit in an array,
so each checkpoint stores a digest of its arrays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from training.processes import leads, together
from training.step import State

_WEIGHTS = ("params", "statistics", "ema")
_BESIDE = ("step", "loss_scale", "carry")  # state entries saved with the optimizer's; the last two are optional

# Orbax reports errors as exceptions; its log would add a traceback from each of its threads.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class CheckpointError(OSError):
    """A checkpoint can't be written or read; the message says which, why and what to do."""


@dataclasses.dataclass(frozen=True)
class Best:
    """The best validation figure so far and the step that reached it."""

    step: int
    value: float


def _flat(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _unflat(like: Any, flat: Mapping[str, Any]) -> Any:
    paths, treedef = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree_util.tree_unflatten(
        treedef, [flat[jax.tree_util.keystr(path, simple=True, separator=".")] for path, _ in paths]
    )


def _abstract(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


@jax.jit
def _digest(arrays: dict[str, jax.Array]) -> jax.Array:
    """A 32-bit sum over the words of all arrays, weighted by position: changing any single value changes it."""
    total = jnp.zeros((), jnp.uint32)
    for number, name in enumerate(sorted(arrays)):
        array = arrays[name]
        array = array.astype(jnp.uint8) if array.dtype == bool else array
        word = jnp.dtype(f"uint{8 * min(array.dtype.itemsize, 4)}")
        bits = jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32).ravel()
        odd = 2 * jax.lax.iota(jnp.uint32, bits.size) + jnp.uint32(2 * number + 1)
        total += jnp.sum(bits * odd, dtype=jnp.uint32)
    return total


def _weights(state: State) -> dict[str, dict[str, Any]]:
    return {"weights": _flat({name: state[name] for name in _WEIGHTS})}


def _items(state: State) -> dict[str, dict[str, Any]]:
    return {**_weights(state), "optimizer": _flat(_optimizer(state))}


def _optimizer(state: State) -> dict[str, Any]:
    return {"state": state["optimizer"], **{name: state[name] for name in _BESIDE if name in state}}


def _arguments(items: Mapping[str, dict[str, Any]], meta: dict[str, Any]) -> ocp.args.Composite:
    meta = {**meta, "digest": {name: int(_digest(arrays)) for name, arrays in items.items()}}
    return ocp.args.Composite(
        **{name: ocp.args.StandardSave(arrays) for name, arrays in items.items()}, meta=ocp.args.JsonSave(meta)
    )


class Checkpoints:
    """The checkpoints of one working directory.

    Args:
      directory: the working directory.
      keep: how many of the newest states to keep.
      read_only: never write or clean up.

    Raises:
      ValueError: ``keep`` is below 1.
      CheckpointError: the folder can't be written, or with ``read_only`` does not exist.
    """

    def __init__(self, directory: Path, keep: int = 3, *, read_only: bool = False) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep}: at least one checkpoint must be kept")
        self._keep, self._read_only = keep, read_only
        self._path, self._best_path = directory.absolute() / "checkpoints", directory.absolute() / "best"
        with self._writing():
            self._last = self._manager(self._path, keep)
            self._best = self._manager(self._best_path, 1)

    def _manager(self, path: Path, keep: int) -> ocp.CheckpointManager:
        if self._read_only:
            if not path.is_dir():
                raise CheckpointError(f"there is no {path}: the run has saved nothing yet")
            return ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(read_only=True))
        path.mkdir(parents=True, exist_ok=True)
        # With several processes a save waits for all of them; in the background this would interfere with the
        # collectives of the next steps, so that they save synchronously.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=jax.process_count() == 1
        )
        return ocp.CheckpointManager(path, options=options)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:  # Orbax reports a full disk as several types, from another thread
            cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                f"can't write checkpoints under {self._path}: {cause}. Free space or make it writable, then run the "
                f"same command to continue from the last one"
            ) from error

    def steps(self) -> list[int]:
        """The steps of the saved states, oldest first."""
        return sorted(self._last.all_steps())

    def save(self, state: State, step: int) -> None:
        """Starts saving a state; returns once its arrays may be overwritten.

        Raises:
          CheckpointError: it, or an earlier save, failed.
        """
        with self._writing():
            if step not in self._last.all_steps():
                self._last.save(step, args=_arguments(_items(state), {"step": step}))

    def save_best(self, state: State, step: int, value: float) -> None:
        """Starts saving the weights of the best step so far, with their figure ``value``.

        Raises:
          CheckpointError: it, or an earlier save, failed.
        """
        with self._writing():
            if step not in self._best.all_steps():
                self._best.save(step, args=_arguments(_weights(state), {"step": step, "value": value}))

    def best(self) -> Best | None:
        """The figure and step of ``best/``; None where there is none or it can't be read."""
        with contextlib.suppress(Exception):
            for step in sorted(self._best.all_steps(), reverse=True):
                meta = self._best.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
                return Best(step, float(meta["value"]))
        return None

    def restore(self, like: State) -> tuple[State, int] | None:
        """Returns (state, step) of the newest readable checkpoint, or None where there is no checkpoint.

        Unreadable newer ones are reported and moved to ``unreadable/``.

        Args:
          like: a state or its ``jax.ShapeDtypeStruct`` form with shardings.

        Raises:
          CheckpointError: there are checkpoints, but none can be read.
        """
        faults: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                items = _read(self._last, step, _items(like))
            except Exception as error:
                faults[step] = _reason(error)
                continue
            self._set_aside(faults, step)
            optimizer = _unflat(_optimizer(like), items["optimizer"])
            weights = _unflat({name: like[name] for name in _WEIGHTS}, items["weights"])
            return {**weights, "optimizer": optimizer.pop("state"), **optimizer, "halted": jnp.zeros((), bool)}, step
        if faults:
            reasons = "; ".join(f"step {step}: {why}" for step, why in faults.items())
            raise CheckpointError(
                f"no checkpoint under {self._path} can be read ({reasons}): remove that folder to start again, or use "
                f"another --workdir"
            )
        return None

    def restore_weights(self, which: str, like: State) -> tuple[State, int]:
        """Returns (params, statistics and ema as in a state, step) of "last", "best" or a step.

        Raises:
          CheckpointError: there is no such checkpoint, or it can't be read.
        """
        manager = self._best if which == "best" else self._last
        known = sorted(manager.all_steps())
        if which in ("last", "best"):
            wanted = known[-1] if known else None
        else:
            wanted = int(which) if which.isdecimal() and int(which) in known else None
        if wanted is None:
            raise CheckpointError(
                f"there is no checkpoint {which!r} under {manager.directory}; there are: "
                f"{', '.join(map(str, known)) or 'none'}"
            )
        try:
            flat = _read(manager, wanted, _weights(like))["weights"]
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {wanted} under {manager.directory} can't be read: {_reason(error)}; choose another with "
                f"--checkpoint"
            ) from error
        return _unflat({name: like[name] for name in _WEIGHTS}, flat), wanted

    def _set_aside(self, faults: Mapping[int, str], good: int) -> None:
        for step, why in faults.items() if leads() else ():
            print(
                f"checkpoint {step} can't be read ({why}): moved to {self._path.parent / 'unreadable'}, continuing "
                f"from {good}",
                file=sys.stderr,
            )
            target = self._path.parent / "unreadable" / str(step)
            with self._writing():
                target.parent.mkdir(exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                (self._path / str(step)).rename(target)
        if faults:
            together("unreadable checkpoints set aside")
            self._last.reload()

    def check(self) -> None:
        """Raises CheckpointError if a save has failed since it was started."""
        with self._writing():
            self._last.check_for_errors()
            self._best.check_for_errors()

    def wait(self) -> None:
        """Returns once all saves are on disk. Raises CheckpointError if one failed."""
        with self._writing():
            self._last.wait_until_finished()
            self._best.wait_until_finished()

    def close(self) -> None:
        """Finishes all saves. Raises CheckpointError if one failed."""
        self.wait()
        self._last.close()
        self._best.close()


def _read(manager: ocp.CheckpointManager, step: int, like: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Restores items with the structure of ``like`` and checks their digests."""
    arguments = {name: ocp.args.StandardRestore(jax.tree.map(_abstract, arrays)) for name, arrays in like.items()}
    restored = manager.restore(step, args=ocp.args.Composite(**arguments, meta=ocp.args.JsonRestore()))
    for name in like:
        if int(_digest(restored[name])) != restored["meta"]["digest"][name]:
            raise ValueError(f"the {name} are not those that were saved (digest differs)")
    return {name: restored[name] for name in like}


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
