"""The base class of all modules: values that a module reports while it runs, and variables that are not parameters.

A module reports by ``self.sow(kind, name, value)``. Nothing is kept, and under ``jit`` nothing is
computed, unless the caller collects that kind::

    with collecting(AuxLoss) as sown:
        y = model(x)
    sown.named(model)        # {"blocks.3.mixer.load_balance": value}

Collecting works through scan and remat because :class:`PureCall`, the one place where a module is
turned into a function of arrays, carries what was sown out of the transformed function.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Required, TypedDict

import jax.numpy as jnp
from flax import nnx


class Statistic(nnx.BatchStat):
    """A variable that training updates without gradients: batch statistics, routing centroids. The loop keeps those of
    other modules too, every ``nnx.BatchStat``.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        # For `variable[...] = value`, Flax asks both arrays for their sharding. While a program is traced, JAX answers
        # with an error, and for its message searches all of the program traced so far.
        self.set_value(value) if key is ... else super().__setitem__(key, value)


class LayerOptions(TypedDict, total=False):
    """Options that every layer takes. Mixers that pass them on take them as ``**options``.

    Keys: dtype: dtype of the computation; None uses that of the input. param_dtype: dtype of the parameters. rngs:
    random keys of the parameters.
    """

    dtype: Any
    param_dtype: Any
    rngs: Required[nnx.Rngs]


def of_layers(options: LayerOptions) -> dict[str, Any]:
    """The subset of a mixer's ``options`` that every layer takes, with defaults."""
    common = {"dtype": None, "param_dtype": jnp.float32}
    return common | {name: value for name, value in options.items() if name in LayerOptions.__annotations__}


def parameter(init: Callable[..., Any], shape: tuple[int, ...], options: LayerOptions) -> nnx.Param:
    """A new parameter, with the ``param_dtype`` and ``rngs`` of ``options``."""
    made = of_layers(options)
    return nnx.Param(init(made["rngs"].params(), shape, made["param_dtype"]))


class Quantized(nnx.Variable):
    """A parameter held as a :class:`primitives.quantized.QuantizedArray`; it is not trained."""

    def __jax_array__(self) -> Any:
        return self[...]


class AuxLoss(nnx.Variable):
    """A sown scalar that the training loop adds to the loss, with the weight given by the config, or else by the
    module.
    """


class AuxLogits(nnx.Variable):
    """Sown logits (batch, classes) beside those that a classifier returns: of its separate heads, or of intermediate
    layers.
    """


class Diagnostic(nnx.Variable):
    """A sown value that helps to explain a model: attention maps, routing decisions."""


class Constant(nnx.Variable):
    """A hyper-parameter kept as an array, so that layers that differ in it share one program."""


@dataclasses.dataclass
class Sown:
    """What was sown inside one :func:`collecting` context.

    Attributes:
      kinds: the kinds collected.
      name: collect only values of this name; None collects all.
      entries: (module, path below it, name, kind, value) in the order of sowing.
    """

    kinds: tuple[type, ...]
    name: str | None = None
    entries: list[tuple[nnx.Module, tuple[str, ...], str, type, Any]] = dataclasses.field(default_factory=list)

    def wants(self, kind: type, name: str) -> bool:
        return kind in self.kinds and self.name in (None, name)

    def named(self, root: nnx.Module, kind: type | None = None) -> dict[str, Any]:
        """The sown values, of one ``kind`` if given, by dotted name below ``root``; a name sown n > 1 times holds a
        tuple.
        """
        paths = {id(module): tuple(str(p) for p in path) for path, module in nnx.iter_modules(root)}
        gathered: dict[str, list[Any]] = {}
        for module, below, name, own, value in self.entries:
            if kind in (None, own):
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
      undecayed: names of its parameters without weight decay: tables, tokens, decays. Vectors never have weight decay.
      sharding: the mesh axis along which each axis of a parameter is split, by the parameter's name below the module
        ("query.kernel"). Parameters without a rule follow the general one of ``training.sharding``.
      aux_losses: default weights of the auxiliary losses that it sows, used where the training config gives none.
    """

    undecayed: ClassVar[tuple[str, ...]] = ()
    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {}
    aux_losses: ClassVar[Mapping[str, float]] = {}

    def sowing(self, kind: type, name: str) -> bool:
        """True if values of this kind and name are being collected; check it before computing an expensive value."""
        collector = _collector.get()
        return collector is not None and collector.wants(kind, name)

    def sow(self, kind: type, name: str, value: Any, **_: Any) -> bool:  # type: ignore[override]
        """Reports ``value``; kept only inside a :func:`collecting` context for ``kind``. Returns whether it was."""
        collector = _collector.get()
        if collector is None or not collector.wants(kind, name):
            return False
        collector.entries.append((self, (), name, kind, value))
        return True


class PureCall:
    """``call(module, *args)`` as a function of arrays, for a transformation of JAX to trace, with the call's side
    effects.

    Calling it returns (output, effects). :meth:`apply`, outside the transformation, applies the effects to a module: it
    writes the variables that the call changed, and sows to the caller's collector what was sown. Variables that were
    only read are not written, so ``jax.jit`` and ``jax.grad`` may close over a module whose call changes none.
    """

    def __init__(self, call: Callable[..., Any]):
        self._call, self._outer = call, _collector.get()
        self._changed: list[tuple[Any, ...]] = []
        self._sown: list[tuple[tuple[Any, ...], tuple[str, ...], str, type]] = []

    def __call__(self, graphdef: Any, state: nnx.State, *args: Any) -> tuple[Any, tuple[list[Any], list[Any]]]:
        module = nnx.merge(graphdef, state)
        variables = _variables(module)
        before = {path: variable.get_raw_value() for path, variable in variables.items()}
        with contextlib.ExitStack() as scope:
            outer = self._outer
            sown = scope.enter_context(collecting(*outer.kinds, name=outer.name)) if outer else Sown(())
            out = self._call(module, *args)
        self._changed = [path for path, variable in variables.items() if variable.get_raw_value() is not before[path]]
        paths = {id(below): path for path, below in nnx.iter_modules(module)} if sown.entries else {}
        self._sown = [(paths[id(source)], below, name, kind) for source, below, name, kind, _ in sown.entries]
        return out, ([variables[path].get_raw_value() for path in self._changed], [value for *_, value in sown.entries])

    def apply(self, module: nnx.Module, effects: tuple[list[Any], list[Any]]) -> None:
        """Applies the side effects of the call to ``module``, which has the structure of the module that was called."""
        changed, values = effects
        if changed:
            variables = _variables(module)
            for path, value in zip(self._changed, changed, strict=True):
                variables[path].set_value(value)
        if self._outer is not None and values:
            modules = dict(nnx.iter_modules(module))
            sources = zip(self._sown, values, strict=True)
            self._outer.entries.extend(
                (modules[path], below, name, kind, value) for (path, below, name, kind), value in sources
            )


def _variables(module: nnx.Module) -> dict[tuple[Any, ...], Any]:
    """The variables by path."""
    return dict(nnx.to_flat_state(nnx.state(module)))


def pure_call(
    module: nnx.Module,
    call: Callable[..., Any],
    *args: Any,
    transform: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Any:
    """Calls ``call(module, *args)`` through ``transform``, such as ``jax.checkpoint``, which sees a pure function of
    arrays.
    """
    graphdef, state = nnx.split(module)
    pure = PureCall(call)
    out, effects = transform(functools.partial(pure, graphdef))(state, *args)
    pure.apply(module, effects)
    return out
