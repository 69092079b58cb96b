"""One table for every op: which implementations exist, which one serves a call, and why.

An op (``attention``, ``linear_attention``, ...) owns an ordered list of implementations. A call is
served by the first one that runs on the platform and accepts the arguments; naming one explicitly
either runs it or raises with its reason. Nothing outside this package asks which platform it is on.

The choice is made while JAX traces, so the contexts below (:func:`use`, :func:`platform`) act on
functions traced inside them, not on programs compiled earlier.
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
    """The answer of an implementation that accepts every call: no objection."""
    return None


class Later:
    """The functions of a module that is imported when one of them is first called.

    Kernels are written in frameworks that take more than a second to import, which no program should spend that runs no
    kernel.
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
      name: "reference", "xla", "mosaic_tpu", "mosaic_gpu", or the way in which devices that share a sequence work
        together.
      call: the function; takes the op's :class:`Call` and returns what its ``results`` name.
      platforms: where it runs ("cpu", "gpu", "tpu"), as a kernel; None is everywhere, in JAX's own operations, which
        the compiler can split.
      objection: called with the same, on a mesh with one device's part in shapes; returns why it can't serve it, or
        None.
      considered: whether to think of it at all where it is not named: on a mesh, say, and not off it.
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
      arrays: makes the op's array arguments, by name, in float64 from a numpy generator. Floating
        arrays are differentiated.
      options: the op's static arguments, by name.
    """

    name: str
    arrays: Callable[[np.random.Generator], dict[str, np.ndarray]]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A call of realistic size, by shapes alone: what is compiled for devices that are not here, and timed on those
    that are.

    Attributes:
      name: unique within the op.
      arrays: the op's array arguments, by name: their shapes, of the dtype that is computed in, or shape and dtype.
      options: the op's static arguments, by name.
    """

    name: str
    arrays: dict[str, tuple[int, ...] | jax.ShapeDtypeStruct]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def abstract(self, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays, computed in ``dtype``."""
        return {name: jax.ShapeDtypeStruct(x, dtype) if isinstance(x, tuple) else x for name, x in self.arrays.items()}


@dataclasses.dataclass(frozen=True)
class Choice:
    """What dispatch picked for one call, and why those before it that run on this platform were passed over."""

    op: str
    implementation: str
    rejected: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        why = "".join(f"; not {name}: {reason}" for name, reason in self.rejected)
        return f"{self.op}: {self.implementation}{why}"


OPS: dict[str, Op] = {}

_forced: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar("forced", default=None)
_interpreted: contextvars.ContextVar[bool] = contextvars.ContextVar("interpreted", default=False)
_record: contextvars.ContextVar[list[Choice] | None] = contextvars.ContextVar("record", default=None)


class Refused(ValueError):
    """No implementation that may be picked serves the call; ``reasons`` holds (name, reason) pairs."""

    def __init__(self, op: str, reasons: tuple[tuple[str, str], ...]):
        super().__init__(
            f"op {op!r} can't serve this call (" + "; ".join(f"{name}: {reason}" for name, reason in reasons) + ")"
        )
        self.reasons = reasons


class Op:
    """An op's implementations in order of preference ("reference" is the specification), its cases and its realistic
    shapes.
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
        """Returns the implementation that serves the call, and the account of the choice.

        Raises:
          ValueError: a named implementation does not exist.
          Refused: it can't serve the call, or none can; a ValueError too.
        """
        forced = _forced.get() or {}
        named = implementation or forced.get(self.name) or forced.get("*")
        here = current_platform()
        rejected: list[tuple[str, str]] = []
        elsewhere: list[tuple[str, str]] = []  # their reason is only worth telling where nothing else serves
        for candidate in self.implementations:
            if named is not None and candidate.name != named:
                continue
            if named is None and not candidate.considered():
                continue
            # The reference is the specification, not a way to run a model: only a name picks it.
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
        """The op on one device's part, for implementations that share a call among devices: their own name, if
        :func:`use` gave it, is followed already.
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
    """Why a candidate can't serve; a kernel that devices share is asked with what one of them has."""
    if _is_shared(candidate):
        return mesh.objection(call) or candidate.objection(mesh.part(call))
    return candidate.objection(call)


def _is_shared(candidate: Implementation) -> bool:
    return candidate.platforms is not None and mesh.is_split()


@contextlib.contextmanager
def interpreting() -> Iterator[None]:
    """Chooses as if running on a TPU and traces its kernels to run as plain JAX, slowly, on the present device: for
    testing them."""
    token = _interpreted.set(True)
    try:
        with platform("tpu"):
            yield
    finally:
        _interpreted.reset(token)


def interpreted() -> bool:
    """Whether TPU kernels traced now are interpreted."""
    return _interpreted.get()


@contextlib.contextmanager
def use(every: str | None = None, /, **by_op: str) -> Iterator[None]:
    """Names the implementation of all ops (``use("reference")``) or of some (``use(attention="xla")``)."""
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
