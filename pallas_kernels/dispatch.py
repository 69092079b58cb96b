"""One table for every op: its implementations, the one chosen for a call, and the reason.

An op (``attention``, ``linear_attention``, ...) has an ordered list of implementations. A call uses the first one that
runs on the platform and supports the arguments; an implementation requested by name is used or raises an error with the
reason. Nothing outside this package checks the platform.

The choice is made while JAX traces, so that the contexts below (:func:`use`, :func:`platform`) affect functions traced
inside them, not programs compiled earlier.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from pallas_kernels import mesh
from pallas_kernels.call import Call
from primitives.platform import current_platform as current_platform
from primitives.platform import platform as platform


def always(_: Any) -> str | None:
    """The ``objection`` of an implementation that supports every call: None."""
    return None


class Later:
    """The functions of a module that is imported only when one of them is called.

    Kernels use frameworks that take more than a second to import; programs without kernels should not pay for it.
    """

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(_call, self._module, name)


def _call(module: str, name: str, *args: Any) -> Any:
    return getattr(importlib.import_module(module), name)(*args)


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Attributes:
      name: "reference", "xla", "mosaic_tpu", "mosaic_gpu", or the method by which devices that share a sequence
        cooperate.
      call: the function; takes the op's :class:`Call` and returns the tuple that its ``results`` describes.
      platforms: where the kernel runs ("cpu", "gpu", "tpu"); None for an implementation in JAX operations, which runs
        everywhere and can be partitioned by the compiler.
      objection: called with the same :class:`Call` (on a mesh, with the shapes of one device's part); returns why the
        call is not supported, or None.
      considered: whether it is a candidate if not requested by name; for example only on a mesh.
      paper: rows of the zoo's roster that it implements.
    """

    name: str
    call: Callable[[Any], tuple[Any, ...]]
    platforms: tuple[str, ...] | None = None
    objection: Callable[[Any], str | None] = always
    considered: Callable[[], bool] = lambda: True
    paper: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs on which every implementation of an op is tested, timed and tuned.

    Attributes:
      name: unique within the op.
      arrays: makes the op's array arguments, by name, in float64 from a numpy generator. Floating arrays are
        differentiated.
      options: the op's static arguments, by name.
    """

    name: str
    arrays: Callable[[np.random.Generator], dict[str, np.ndarray]]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A call of realistic size, given only by shapes: compiled for devices that are not present, and timed on those
    that are.

    Attributes:
      name: unique within the op.
      arrays: the op's array arguments by name: shapes, for arrays of the compute dtype, or shapes with dtypes.
      options: the op's static arguments, by name.
    """

    name: str
    arrays: dict[str, tuple[int, ...] | jax.ShapeDtypeStruct]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def abstract(self, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays as ``jax.ShapeDtypeStruct``, with the compute dtype ``dtype``."""
        return {name: jax.ShapeDtypeStruct(x, dtype) if isinstance(x, tuple) else x for name, x in self.arrays.items()}


@dataclasses.dataclass(frozen=True)
class Choice:
    """The implementation chosen for one call, and why preceding ones for this platform were rejected."""

    op: str
    implementation: str
    rejected: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        why = "".join(f"; not {name}: {reason}" for name, reason in self.rejected)
        return f"{self.op}: {self.implementation}{why}"


OPS: dict[str, Op] = {}

_forced: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar("forced", default=None)
_interpreted: contextvars.ContextVar[Any] = contextvars.ContextVar("interpreted", default=False)
_record: contextvars.ContextVar[list[Choice] | None] = contextvars.ContextVar("record", default=None)


class Refused(ValueError):
    """No eligible implementation supports the call; ``reasons`` holds (name, reason) pairs."""

    def __init__(self, op: str, reasons: tuple[tuple[str, str], ...]):
        super().__init__(
            f"op {op!r} can't serve this call (" + "; ".join(f"{name}: {reason}" for name, reason in reasons) + ")"
        )
        self.reasons = reasons


class Op:
    """An op: its implementations in order of preference ("reference" is the specification), its cases and its realistic
    shapes.

    Raises:
      ValueError: an op of this name exists.
    """

    def __init__(
        self,
        name: str,
        implementations: tuple[Implementation, ...],
        cases: tuple[Case, ...] = (),
        shapes: tuple[Shape, ...] = (),
    ):
        if name in OPS:
            raise ValueError(f"op {name!r} is defined twice")
        self.name, self.implementations, self.cases, self.shapes = name, implementations, cases, shapes
        OPS[name] = self

    def choose(self, call: Call, implementation: str | None = None) -> tuple[Implementation, Choice]:
        """Returns the implementation for the call, and the record of the choice.

        Raises:
          ValueError: the requested implementation does not exist.
          Refused: it does not support the call, or none does; a subclass of ValueError.
        """
        forced = _forced.get() or {}
        named = implementation or forced.get(self.name) or forced.get("*")
        here = current_platform()
        rejected: list[tuple[str, str]] = []
        elsewhere: list[tuple[str, str]] = []  # reported only where nothing else supports the call
        for candidate in self.implementations:
            if named is not None and candidate.name != named:
                continue
            if named is None and not candidate.considered():
                continue
            # The reference is the specification, not a way to run a model: it must be requested by name.
            if named is None and candidate.name == "reference" and len(self.implementations) > 1:
                continue
            if candidate.platforms is not None and here not in candidate.platforms:
                elsewhere.append((candidate.name, f"runs on {' or '.join(candidate.platforms)}, this is {here}"))
                continue
            reason = _objection(candidate, call)
            if reason is None:
                return candidate, Choice(self.name, candidate.name, tuple(rejected))
            rejected.append((candidate.name, reason))
        rejected += elsewhere
        if named is not None and not rejected:
            known = ", ".join(i.name for i in self.implementations)
            raise ValueError(f"op {self.name!r} has no implementation {named!r}; it has: {known}")
        raise Refused(self.name, tuple(rejected))

    def __call__(self, call: Call, implementation: str | None = None) -> tuple[Any, ...]:
        chosen, choice = self.choose(call, implementation)
        record = _record.get()
        if record is not None:
            record.append(choice)
        return mesh.run(chosen.call, call) if _is_shared(chosen) else chosen.call(call)

    def within(self, call: Call) -> tuple[Any, ...]:
        """The op on one device's part, for implementations that split a call over devices. Their own name, if
        :func:`use` forces it, is ignored inside.
        """
        followed = {i.name for i in self.implementations if not i.considered()}
        token = _forced.set(
            {op: name for op, name in (_forced.get() or {}).items() if op != self.name or name not in followed}
        )
        try:
            return self(call)
        finally:
            _forced.reset(token)


def _objection(candidate: Implementation, call: Call) -> str | None:
    """Why a candidate does not support the call; a kernel on a mesh is asked about one device's part."""
    if _is_shared(candidate):
        return mesh.objection(call) or candidate.objection(mesh.part(call))
    return candidate.objection(call)


def _is_shared(candidate: Implementation) -> bool:
    return candidate.platforms is not None and mesh.is_split()


@contextlib.contextmanager
def interpreting(how: Any = True) -> Iterator[None]:
    """Chooses implementations as on a TPU and traces its kernels in interpret mode, to test them (slowly) on the
    present device.

    Args:
      how: what ``pallas_call`` gets as ``interpret``: True runs the steps of the grid one after another as plain JAX;
        ``pltpu.InterpretParams`` simulates a TPU, with its memories and cores.
    """
    token = _interpreted.set(how)
    try:
        with platform("tpu"):
            yield
    finally:
        _interpreted.reset(token)


def interpreted() -> Any:
    """What TPU kernels pass on as ``interpret``: False unless they are traced in interpret mode."""
    return _interpreted.get()


@contextlib.contextmanager
def use(every: str | None = None, /, **by_op: str) -> Iterator[None]:
    """Forces the implementation of all ops (``use("reference")``) or of some (``use(attention="xla")``)."""
    token = _forced.set({**(_forced.get() or {}), **({"*": every} if every else {}), **by_op})
    try:
        yield
    finally:
        _forced.reset(token)


@contextlib.contextmanager
def recording() -> Iterator[list[Choice]]:
    """Collects every :class:`Choice` made while tracing inside the context."""
    record: list[Choice] = []
    token = _record.set(record)
    try:
        yield record
    finally:
        _record.reset(token)
