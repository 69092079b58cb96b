"""The cost of a model, computed without building it: parameters, operations, memory of a training step, and the
implementations that dispatch picks."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.mixer import Mixer
from layers.quantized import parameters_of
from layers.rematerialization import NOTHING, POLICIES
from layers.stack import Stack
from layers.state import parameter_count
from pallas_kernels import dispatch
from primitives import memory, operations
from zoo.backbones.model import input_count
from zoo.creation import create_abstract
from zoo.quantization import copies, described_here, sizes


@dataclasses.dataclass(frozen=True)
class Row:
    """One part of a model.

    Attributes:
      name: its dotted name; "(rest)" is everything outside the parts.
      kind: its class.
      output: shape of what it returns, batch 1.
      parameters: numbers that training updates by gradient.
      flops: arithmetic operations of one input.
      activations: bytes that its forward pass on a batch keeps for the backward pass, including its input where that is
        needed again; 0 if no batch size was given.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    flops: int
    activations: int = 0


@dataclasses.dataclass(frozen=True)
class Summary:
    """The cost of a model for one input; ``print`` it for a table.

    Attributes:
      name: of the model.
      input_shape: with batch 1.
      parameters: numbers that training updates by gradient.
      statistics: numbers that training updates otherwise (batch statistics).
      flops: arithmetic operations of a forward pass, a multiply-add as 2, elementary functions as 1.
      multiply_adds: those of matrix products and convolutions: what papers call FLOPs.
      choices: how often dispatch picked each implementation, and why.
      ignored: options that the model suggests to its mixers and that these do not take, such as "dropout: DeltaNet".
      rows: the parts: stem, every block, norm, head.
      batch_size: of the step whose memory was estimated; None if it was not.
      step_bytes: peak memory of a forward and a backward pass on that batch besides the parameters, gradients included:
        an estimate by :mod:`primitives.memory`, in evaluation mode, without the optimizer.
      weight_bytes: bytes of the parameters as stored, including copies beside quantized ones.
      quantized: for a quantized model, its format and its size with and without quantization, in words.
    """

    name: str
    input_shape: tuple[int, ...]
    parameters: int
    statistics: int
    flops: int
    multiply_adds: int
    choices: dict[str, int]
    ignored: tuple[str, ...]
    rows: tuple[Row, ...]
    batch_size: int | None = None
    step_bytes: int = 0
    weight_bytes: int = 0
    quantized: str | None = None

    def by_stage(self) -> Summary:
        """The same summary with one row for all blocks of a stage."""
        stages: dict[str, list[Row]] = {}
        for row in self.rows:
            found = re.match(r"(\w+\.\d+)\.|[^.]+", row.name)
            assert found is not None
            stages.setdefault(found[1] or found[0], []).append(row)
        rows = [
            rows[0]
            if len(rows) == 1
            else Row(
                name,
                ", ".join(f"{count} {kind}" for kind, count in collections.Counter(r.kind for r in rows).items()),
                rows[-1].output,
                *(sum(getattr(row, field) for row in rows) for field in ("parameters", "flops", "activations")),
            )
            for name, rows in stages.items()
        ]
        return dataclasses.replace(self, rows=tuple(rows))

    def __str__(self) -> str:
        header = ["part", "kind", "output", "parameters", "MFLOP"]
        lines = [
            header,
            *[[r.name, r.kind, _shape(r.output), f"{r.parameters:,}", f"{r.flops / 1e6:,.1f}"] for r in self.rows],
        ]
        if self.batch_size is not None:
            header.append("kept MiB")
            for line, row in zip(lines[1:], self.rows, strict=True):
                line.append(f"{row.activations / 2**20:,.1f}")
        step = (
            []
            if self.batch_size is None
            else [
                f"a forward and a backward pass on {self.batch_size}: about {memory.size(self.step_bytes)} besides "
                "the parameters"
            ]
        )
        step += [self.quantized] if self.quantized is not None else []
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        table = [
            "  ".join(
                cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        rule = "-" * len(table[0])
        statistics = f", {self.statistics:,} statistics" if self.statistics else ""
        return "\n".join(
            [
                f"{self.name}, input {_shape(self.input_shape)}",
                rule,
                table[0],
                rule,
                *table[1:],
                rule,
                f"{self.parameters:,} parameters{statistics}; {self.multiply_adds / 1e9:,.3f} G multiply-adds, "
                f"{self.flops / 1e9:,.3f} GFLOP forward",
                *step,
                *[f"{count} x {choice}" for choice, count in self.choices.items()],
                *[f"ignored {option}" for option in self.ignored],
            ]
        )


def summary(
    model: str | nnx.Module,
    input_shape: tuple[int, ...] | None = None,
    *,
    batch_size: int | None = None,
    show: bool = True,
    **overrides: Any,
) -> Summary:
    """The cost of a model. Everything is traced abstractly: no parameter is allocated, nothing is compiled.

    Args:
      model: a name of ``zoo.list_models()``, or a model.
      input_shape: of one example, without the batch axis; default: the model's own. A source and a target both have it.
      batch_size: also estimate the memory of a training step on this many inputs: what each part keeps for the backward
        pass, and the peak.
      show: print the table.
      **overrides: as ``zoo.create`` takes them; only with a name.

    Raises:
      ValueError: overrides for an existing model, a model whose input shape is unknown, or a batch_size below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    made: Any = model
    if isinstance(model, str):
        name, made = model, create_abstract(model, **overrides)
    elif overrides:
        raise ValueError(f"the model is already made: {', '.join(overrides)} can be given with a name only")
    else:
        name = getattr(model, "variant", type(model).__name__)
    shape = (1, *(own_input_shape(made) if input_shape is None else input_shape))
    # Two axes are token ids, more are pixels.
    x = jax.ShapeDtypeStruct(shape, jnp.int32 if len(shape) == 2 else jnp.float32)
    graphdef, state = nnx.split(made)
    state = _abstract(state)
    output: list[tuple[int, ...]] = []

    def forward(calls: list[_Call] | None, state: nnx.State, x: Any) -> Any:
        copy = nnx.merge(graphdef, state)
        copy.eval()
        if calls is not None:
            _watch(copy, calls)
        y = copy(*[x] * input_count(copy))
        output.append(_output_shape(y))
        return y

    calls: list[_Call] = []
    with dispatch.recording() as choices:
        total = operations.count(functools.partial(forward, calls), state, x)
    rows = _rows(calls)
    parameters = parameter_count(made)
    rest = Row(
        "(rest)", "", output[0], parameters - sum(r.parameters for r in rows), total.flops - sum(r.flops for r in rows)
    )
    step_bytes = 0
    if batch_size is not None:
        batch = jax.ShapeDtypeStruct((batch_size, *shape[1:]), x.dtype)
        step_bytes = memory.temporaries(jax.make_jaxpr(_gradient(functools.partial(forward, None)))(state, batch))
        calls = []
        jax.eval_shape(functools.partial(forward, calls), state, batch)
        held = _activations(calls)
        rows = [dataclasses.replace(row, activations=held.get(row.name, 0)) for row in rows]
    result = Summary(
        name=name,
        input_shape=shape,
        parameters=parameters,
        statistics=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(made, nnx.BatchStat))),
        flops=total.flops,
        multiply_adds=total.matmul_flops // 2,
        choices=dict(collections.Counter(map(str, choices))),
        ignored=ignored(made),
        rows=(*rows, rest),
        batch_size=batch_size,
        step_bytes=step_bytes,
        weight_bytes=sizes(made)[0] + copies(made),
        quantized=described_here(made),
    )
    if show:
        print(result)
    return result


def ignored(model: nnx.Module) -> tuple[str, ...]:
    """Options that a model suggests to its mixers and that these do not take, each with the classes of those mixers."""
    classes: dict[str, set[str]] = {}
    for _, module in nnx.iter_modules(model):
        for option in getattr(module, "ignored", ()) if isinstance(module, Mixer) else ():
            classes.setdefault(option, set()).add(type(module).__name__)
    return tuple(f"{option}: {', '.join(sorted(names))}" for option, names in sorted(classes.items()))


def own_input_shape(model: nnx.Module) -> tuple[int, ...]:
    """The shape of one input of a model, without the batch axis.

    Raises:
      ValueError: the model does not say.
    """
    config: Any = getattr(model, "config", None)
    if hasattr(config, "image_size"):
        return config.image_size, config.image_size, config.in_channels
    if hasattr(config, "vocab_size") and hasattr(config, "max_length"):
        return (getattr(config, "randomized", None) or config.max_length,)
    raise ValueError(
        f"{type(model).__name__} does not tell the shape of its input: give input_shape, without the batch axis"
    )


@dataclasses.dataclass(frozen=True)
class _Call:
    """What counting needs from a call of one part. ``again``: its parameters are an earlier part's; ``remat``: what is
    recomputed of it in the backward pass."""

    name: str
    kind: str
    again: bool
    remat: str
    graphdef: nnx.GraphDef
    state: nnx.State
    arguments: tuple[Any, Any]
    output: tuple[int, ...]


def _parts(module: nnx.Module, name: str = "") -> list[tuple[str, nnx.Module]]:
    """The parts that have a row: modules that contain a stack are expanded, and so are stacks and lists."""
    found: list[tuple[str, nnx.Module]] = []
    for key, child in nnx.iter_children(module):
        path = f"{name}.{key}" if name else str(key)
        opened = type(child) is nnx.List or any(isinstance(inner, Stack) for _, inner in nnx.iter_modules(child))
        found += _parts(child, path) if opened else [(path, child)]
    return found


def _watch(model: nnx.Module, calls: list[_Call]) -> None:
    """Makes every part of ``model``, a copy for this trace only, record its calls."""
    again: set[str] = set()  # further uses of a shared block, whose parameters count once
    remat: dict[str, str] = {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Stack):
            remat |= {".".join(map(str, (*path, i))): module.remat for i in range(len(module))}
            # A scanned or recomputed block is another copy, whose calls are not recorded.
            module.scan, module.remat = False, NOTHING
            for i, block in enumerate(module):
                if any(block is module[before] for before in range(i)):
                    setattr(module, str(i), nnx.clone(block))
                    again.add(".".join(map(str, (*path, i))))
    for name, part in _parts(model):
        cls = type(part)
        if not callable(part):
            continue
        graphdef, state = nnx.split(part)
        known = (name, name in again, remat.get(name, NOTHING), graphdef, _abstract(state))

        def call(self: Any, *args: Any, _cls: type = cls, _known: tuple[Any, ...] = known, **kwargs: Any) -> Any:
            y = _cls.__call__(self, *args, **kwargs)
            name, again, remat, graphdef, state = _known
            given = (_abstract(args), _abstract(kwargs))
            calls.append(_Call(name, _cls.__name__, again, remat, graphdef, state, given, _output_shape(y)))
            return y

        metaclass: Any = type(cls)
        watched = metaclass(cls.__name__, (cls,), {})
        watched.__call__ = call  # set afterwards: subclasses of Mixer must not define it in their body
        part.__class__ = watched


def _rows(calls: list[_Call]) -> list[Row]:
    rows: dict[str, Row] = {}
    for call, flops in zip(calls, _of_each(calls, lambda call: operations.count(*_program(call)).flops), strict=True):
        parameters = 0 if call.again else sum(math.prod(leaf.shape) for leaf in parameters_of(call.state))
        before = rows.get(call.name)
        rows[call.name] = Row(call.name, call.kind, call.output, parameters, flops + (before.flops if before else 0))
    return list(rows.values())


def _activations(calls: list[_Call]) -> dict[str, int]:
    """Bytes that each part keeps for its backward pass."""
    held: collections.Counter[str] = collections.Counter()
    for call, size in zip(calls, _of_each(calls, lambda call: memory.kept(*_program(call))), strict=True):
        held[call.name] += size
    return dict(held)


def _of_each(calls: list[_Call], measure: Callable[[_Call], int]) -> list[int]:
    """``measure`` of every call. Equal blocks cost the same: each kind is measured once."""
    measured: dict[Any, int] = {}
    found = []
    for call in calls:
        leaves, treedef = jax.tree.flatten((call.state, call.arguments))
        key = (call.graphdef, call.remat, treedef, tuple(leaves))
        if key not in measured:
            measured[key] = measure(call)
        found.append(measured[key])
    return found


def _program(call: _Call) -> tuple[Callable[..., Any], nnx.State, list[Any]]:
    """A call as a function of arrays, its parameters and its inputs."""
    leaves, treedef = jax.tree.flatten(call.arguments)
    # Anything that is not an array (a grid's size) is not an argument of the program.
    traced = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves]

    def run(state: nnx.State, given: list[Any]) -> Any:
        arrays = iter(given)
        args, kwargs = jax.tree.unflatten(
            treedef, [next(arrays) if t else leaf for t, leaf in zip(traced, leaves, strict=True)]
        )
        return nnx.merge(call.graphdef, state)(*args, **kwargs)

    given = [leaf for t, leaf in zip(traced, leaves, strict=True) if t]
    transform = POLICIES[call.remat]
    return (run if transform is None else transform(run)), call.state, given


def _gradient(forward: Callable[[nnx.State, Any], Any]) -> Callable[[nnx.State, Any], nnx.State]:
    """The gradient of the sum of all outputs with respect to the parameters."""

    def gradient(state: nnx.State, x: Any) -> nnx.State:
        parameters, rest = nnx.split_state(state, nnx.Param, ...)

        def loss(parameters: nnx.State) -> jax.Array:
            leaves = jax.tree.leaves(forward(nnx.merge_state(parameters, rest), x))
            floating = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
            return sum((jnp.sum(leaf.astype(jnp.float32)) for leaf in floating), jnp.float32(0))

        return jax.grad(loss)(parameters)

    return gradient


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf, tree
    )


def _output_shape(y: Any) -> tuple[int, ...]:
    leaves = jax.tree.leaves(y)
    return tuple(leaves[0].shape) if leaves else ()


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
