"""The base of every module here: values that a module reports while it runs, and the variables that are not parameters.

A module reports by ``self.sow(kind, name, value)``. Nothing is kept, and under ``jit`` nothing is
computed, unless the caller collects that kind::

    with collecting(AuxLoss) as sown:
        y = model(x)
    sown.named(model)        # {"blocks.3.mixer.load_balance": value}

Collecting works through scan and remat because :func:`pure_call`, the one place where a module is
turned into a function of arrays, carries what was sown out of the transformed function.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from flax import nnx

Statistic = nnx.BatchStat
"""The variable type of whatever training updates without a gradient: batch statistics, routing centroids."""


class AuxLoss(nnx.Variable):
    """Kind of a sown scalar that the training loop adds to the loss with its config weight."""


class Diagnostic(nnx.Variable):
    """Kind of a sown value that explains a model: attention maps, routing decisions."""


class Constant(nnx.Variable):
    """A number of the architecture kept as an array so that layers that differ in it share one program."""


@dataclasses.dataclass
class Sown:
    """What was sown inside one :func:`collecting` context.

    Attributes:
      kinds: the kinds collected.
      name: collect only values of this name; None collects all.
      entries: (module, path below it, name, value) in the order of sowing.
    """

    kinds: tuple[type, ...]
    name: str | None = None
    entries: list[tuple[nnx.Module, tuple[str, ...], str, Any]] = dataclasses.field(default_factory=list)

    def wants(self, kind: type, name: str) -> bool:
        return kind in self.kinds and self.name in (None, name)

    def named(self, root: nnx.Module) -> dict[str, Any]:
        """Values by dotted name below ``root``; a name sown n times holds a tuple of n values."""
        paths = {id(module): tuple(str(p) for p in path) for path, module in nnx.iter_modules(root)}
        gathered: dict[str, list[Any]] = {}
        for module, below, name, value in self.entries:
            gathered.setdefault(".".join((*paths[id(module)], *below, name)), []).append(value)
        return {name: values[0] if len(values) == 1 else tuple(values) for name, values in gathered.items()}


_collector: contextvars.ContextVar[Sown | None] = contextvars.ContextVar("collector", default=None)


@contextlib.contextmanager
def collecting(*kinds: type, name: str | None = None) -> Iterator[Sown]:
    """Collects what modules sow of ``kinds`` (and of ``name``, if given) while the context is open."""
    sown = Sown(kinds, name)
    token = _collector.set(sown)
    try:
        yield sown
    finally:
        _collector.reset(token)


class Module(nnx.Module):
    """An ``nnx.Module`` that reports by :meth:`sow`.

    Attributes:
      undecayed: names of its parameters that weight decay spares besides all vectors: tables, tokens, decays.
    """

    undecayed: ClassVar[tuple[str, ...]] = ()

    def sowing(self, kind: type, name: str) -> bool:
        """True when a value of this kind and name is being collected: ask before computing a dear one."""
        collector = _collector.get()
        return collector is not None and collector.wants(kind, name)

    def sow(self, kind: type, name: str, value: Any, **_: Any) -> bool:  # type: ignore[override]
        """Reports ``value``; kept only inside a :func:`collecting` context for ``kind``. Returns whether it was kept."""
        collector = _collector.get()
        if collector is None or not collector.wants(kind, name):
            return False
        collector.entries.append((self, (), name, value))
        return True


def pure_call(module: nnx.Module, call: Callable[..., Any], *args: Any, transform: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Any:
    """Calls ``call(module, *args)`` through ``transform`` (``jax.checkpoint``, say), which sees a function of arrays alone.

    Statistics and random counters that the call updates are written back to ``module``, and what it
    sows is sown for the caller.
    """
    split: Any = nnx.split(module, nnx.Param, ...)
    graphdef, params, rest = split
    outer = _collector.get()
    labels: list[tuple[tuple[str, ...], str]] = []

    def pure(params: nnx.State, rest: nnx.State, *args: Any) -> tuple[Any, nnx.State, list[Any]]:
        inner = nnx.merge(graphdef, params, rest)
        with contextlib.ExitStack() as scope:
            sown = scope.enter_context(collecting(*outer.kinds, name=outer.name)) if outer else Sown(())
            out = call(inner, *args)
        values = unbind(sown, inner, labels)
        return out, nnx.state(inner, nnx.Not(nnx.Param)), values

    out, rest, values = transform(pure)(params, rest, *args)
    nnx.update(module, rest)
    rebind(module, labels, values)
    return out


def unbind(sown: Sown, root: nnx.Module, labels: list[tuple[tuple[str, ...], str]]) -> list[Any]:
    """Takes the values out of ``sown`` as arrays, leaving where they came from in ``labels``."""
    paths = {id(module): tuple(str(p) for p in path) for path, module in nnx.iter_modules(root)} if sown.entries else {}
    labels[:] = [((*paths[id(module)], *below), name) for module, below, name, _ in sown.entries]
    return [value for *_, value in sown.entries]


def rebind(root: nnx.Module, labels: list[tuple[tuple[str, ...], str]], values: list[Any]) -> None:
    """Sows ``values`` again for the enclosing collector, as coming from ``root`` and below."""
    outer = _collector.get()
    if outer is not None:
        outer.entries.extend((root, below, name, value) for (below, name), value in zip(labels, values, strict=True))

