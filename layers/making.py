"""Model construction: first the modules, then the parameters, each drawn on the host as a function of the model's seed,
the parameter's name and its shape.

    model = make(lambda rngs: Model(config, rngs=rngs), nnx.Rngs(0))

So nothing is compiled for drawing, parameters loaded from a file are never drawn, each process of a sharded model draws
only its own part, and the result does not depend on how the model is made. A model takes one key from each stream of
``rngs``; the keys requested by dropout and by modules of other libraries are derived from it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.nnx.tracers import TraceState

from layers.initializers import Draw, making

SMALL = 1 << 16
"""Arrays of up to this many numbers are transferred to the device in one call."""

Build = Callable[[nnx.Rngs], nnx.Module]
Shardings = Callable[[nnx.Module], Mapping[str, Any]]


def make(build: Build, rngs: nnx.Rngs, shardings: Shardings | None = None) -> nnx.Module:
    """Builds the model of ``build(rngs)`` and draws its parameters.

    Args:
      build: constructs the model, from modules of this or any other library.
      rngs: one key of each stream is used. Where it is traced, under ``jit``, the host draws when the program runs.
      shardings: a function from the model, which has only the shapes of its arrays, to shardings by variable name;
        variables without one are replicated on all devices.

    Raises:
      ValueError: two names share a parameter.
    """
    return Unfinished(build, rngs, shardings).finish()


def abstract(build: Build) -> Any:
    """The model of ``build`` with ``jax.ShapeDtypeStruct`` in place of arrays: names and shapes, nothing drawn or
    allocated.
    """
    made: list[Any] = []

    def arrays() -> list[jax.Array]:
        with _deferring():
            model = build(ModelRngs(nnx.Rngs(0), alike=True))
        graphdef, state = nnx.split(model)
        leaves, structure = jax.tree.flatten(state)
        made[:] = graphdef, leaves, structure
        leaves[:] = (leaf.early if isinstance(leaf, Draw) and leaf.early is not None else leaf for leaf in leaves)
        return [leaf for leaf in leaves if not isinstance(leaf, Draw)]

    shapes = iter(jax.eval_shape(arrays))
    graphdef, leaves, structure = made
    leaves = [
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, Draw) else next(shapes) for leaf in leaves
    ]
    return nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))


class Unfinished:
    """A model whose parameters are still :class:`layers.initializers.Draw` objects: those that are assigned an array
    before :meth:`finish` are never drawn.

    Attributes:
      model: the model.
    """

    def __init__(self, build: Build, rngs: nnx.Rngs, shardings: Shardings | None = None):
        """As :func:`make`."""
        streams = ModelRngs(rngs)
        with _deferring():
            self.model: Any = build(streams)
        self._seed = streams.params.data
        self._places: dict[str, Any] = {}
        self._copied = None
        variables = named(self.model)
        if shardings is not None:
            self._places = dict(shardings(self.model))
            self._copied = jax.sharding.NamedSharding(
                next(iter(self._places.values())).mesh, jax.sharding.PartitionSpec()
            )
            for name, variable in variables.items():
                draw = variable.get_value()
                if isinstance(draw, Draw):
                    draw.sharding = self._places.get(name, self._copied)

    def finish(self) -> Any:
        """Draws the parameters that have no array yet, and returns the model."""
        values = {}
        for name, variable in named(self.model).items():
            value = variable.get_value()
            if isinstance(value, Draw) and value.early is not None:
                value = value.early if value.sharding is None else jax.device_put(value.early, value.sharding)
                variable.set_value(value)
            values[name] = variable, value
        draws = {name: (variable, value) for name, (variable, value) in values.items() if isinstance(value, Draw)}
        if isinstance(self._seed, jax.core.Tracer):
            shapes = [jax.ShapeDtypeStruct(draw.shape, draw.dtype) for _, draw in draws.values()]

            def host(seed: Any) -> list[np.ndarray]:
                return [draw.numbers(np.asarray(seed).tobytes(), name) for name, (_, draw) in draws.items()]

            arrays = jax.pure_callback(host, shapes, self._seed, vmap_method="sequential")
            for (variable, _), array in zip(draws.values(), arrays, strict=True):
                variable.set_value(array)
            return self.model
        seed = np.asarray(self._seed).tobytes()
        small = []
        for name, (variable, value) in values.items():
            if isinstance(value, Draw) and (value.sharding is not None or value.size > SMALL):
                variable.set_value(_placed(value, seed, name))
            elif isinstance(value, Draw | np.ndarray | np.generic):
                small.append((variable, value.numbers(seed, name) if isinstance(value, Draw) else value))
        for (variable, _), array in zip(small, jax.device_put([array for _, array in small]), strict=True):
            variable.set_value(array)
        if self._copied is not None:
            rest = {
                name: variable
                for name, (variable, _) in values.items()
                if name not in draws and name not in self._places
            }
            copies = jax.jit(lambda arrays: arrays, out_shardings=self._copied)(
                {name: variable.get_value() for name, variable in rest.items()}
            )
            for name, variable in rest.items():
                variable.set_value(copies[name])
        return self.model


def _placed(draw: Draw, seed: bytes, name: str) -> jax.Array:
    if draw.sharding is None or draw.sharding.is_fully_addressable:
        return jax.device_put(draw.numbers(seed, name), draw.sharding)
    return jax.make_array_from_callback(draw.shape, draw.sharding, lambda index: draw.numbers(seed, name, index))


def named(model: nnx.Module) -> dict[str, nnx.Variable[Any]]:
    """All variables of a model by dotted name.

    Raises:
      ValueError: two names share a parameter or statistic.
    """
    found: dict[str, nnx.Variable[Any]] = {}
    firsts: dict[int, str] = {}
    seconds: dict[str, str] = {}

    def visit(node: Any, name: str) -> None:
        is_variable = nnx.Variable in type(node).__mro__  # many times faster than isinstance, which Flax overrides
        if not is_variable and not isinstance(node, nnx.Pytree | list | tuple | dict):
            return
        if id(node) in firsts:
            seconds[firsts[id(node)]] = name
            return
        firsts[id(node)] = name
        if is_variable:
            found[name] = node
            return
        parts = (
            node.items()
            if isinstance(node, dict)
            else enumerate(node)
            if isinstance(node, list | tuple)
            else vars(node).items()
        )
        if getattr(node, "repeats", False):
            first: dict[int, tuple[Any, Any]] = {}
            for key, part in parts:
                first.setdefault(id(part), (key, part))
            parts = first.values()
        for key, part in parts:
            if type(part) not in _PLAIN and not str(key).startswith("_pytree__"):
                visit(part, f"{name}.{key}" if name else str(key))

    visit(model, "")
    for first, second in seconds.items():
        for name, variable in found.items():
            if (name == first or name.startswith(f"{first}.")) and isinstance(variable, nnx.Param | nnx.BatchStat):
                raise ValueError(
                    f"{name} and {second + name[len(first) :]} are one parameter: a parameter has one name, by which "
                    "it is drawn, saved and loaded; keep it under one name, and pass its value as an argument"
                )
    return found


_PLAIN = {int, float, bool, str, type(None), type}


class ModelRngs(nnx.Rngs):
    """The random streams of a model under construction: each is seeded by one key of the stream of the same name in
    ``rngs``.
    """

    def __init__(self, rngs: nnx.Rngs, *, alike: bool = False):
        """``alike``: all keys are equal, for a model of which only the shapes are needed."""
        for name, stream in rngs.items():
            key, count = stream.key.get_value(), stream.count.get_value()
            stream.count.set_value(
                count + 1 if isinstance(count, jax.core.Tracer) else jax.device_put(np.asarray(count) + np.uint32(1))
            )
            impl = jax.random.key_impl(key)
            setattr(self, name, _Keys(_derived(jax.random.key_data(key), count), impl, alike, tag=name))


class _Keys(nnx.RngStream):
    """A stream that derives its keys on the host while a model is being made, in a tenth of the time that JAX takes."""

    def __init__(self, data: Any, impl: Any, alike: bool, *, tag: str):
        super().__init__(jax.random.wrap_key_data(data, impl=impl), tag=tag)
        self.data, self.impl, self.alike, self.taken = nnx.data(data), impl, alike, 0

    def __call__(self) -> Any:
        model = making.get()
        if model is None or not model.here():
            return super().__call__()
        if self.alike:
            return self.key.get_value()
        self.taken += 1
        return jax.random.wrap_key_data(_derived(self.data, self.taken), impl=self.impl)

    def fork(self, **options: Any) -> nnx.RngStream:
        """An independent stream, which remains usable after the model is made."""
        return super().fork(**options) if options else nnx.RngStream(self(), tag=self.tag)


def _derived(data: Any, count: Any) -> Any:
    """The data of a key derived from another's data and a number, by a hash on the host: nothing is compiled."""

    def host(data: Any, count: Any) -> np.ndarray:
        words = np.asarray(data).astype("<u4")
        digest = hashlib.blake2b(words.tobytes() + int(count).to_bytes(8, "little"), digest_size=words.nbytes)
        return np.frombuffer(digest.digest(), "<u4").astype(np.uint32)

    if isinstance(data, jax.core.Tracer) or isinstance(count, jax.core.Tracer):
        return jax.pure_callback(
            host, jax.ShapeDtypeStruct(data.shape, data.dtype), data, count, vmap_method="sequential"
        )
    return host(data, count)


class _Making:
    def __init__(self) -> None:
        self._trace = TraceState()

    def here(self) -> bool:
        return self._trace.is_valid()


@contextlib.contextmanager
def _deferring() -> Iterator[None]:
    token = making.set(_Making())
    try:
        yield
    finally:
        making.reset(token)
