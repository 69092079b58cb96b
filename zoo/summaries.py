"""What a model costs, found without building it: parameters, operations, and the implementations that dispatch
picks."""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.mixer import Mixer
from layers.module import Statistic
from layers.stack import Stack
from layers.state import parameter_count
from pallas_kernels import dispatch
from primitives import operations
from zoo.creation import create_abstract


@dataclasses.dataclass(frozen=True)
class Row:
    """One part of a model.

    Attributes:
      name: its dotted name; "(rest)" is what belongs to no part.
      kind: its class.
      output: shape of what it returns, batch 1.
      parameters: numbers that training updates by gradient.
      flops: arithmetic operations of one input.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a model costs for one input; ``print`` it for a table.

    Attributes:
      name: of the model.
      input_shape: with batch 1.
      parameters: numbers that training updates by gradient.
      statistics: numbers that training updates otherwise (batch statistics).
      flops: arithmetic operations of a forward pass, a multiply-add as 2, elementary functions as 1.
      multiply_adds: those of matrix products and convolutions: what papers call FLOPs.
      choices: how often dispatch picked what, and why.
      ignored: options that the model suggests to its mixers and that these mixers do not take, as "dropout: DeltaNet".
      rows: the parts: stem, every block, norm, head.
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

    def __str__(self) -> str:
        header = ("part", "kind", "output", "parameters", "MFLOP")
        lines = [
            header,
            *[(r.name, r.kind, _shape(r.output), f"{r.parameters:,}", f"{r.flops / 1e6:,.1f}") for r in self.rows],
        ]
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
                *[f"{count} x {choice}" for choice, count in self.choices.items()],
                *[f"ignored {option}" for option in self.ignored],
            ]
        )


def summary(
    model: str | nnx.Module, input_shape: tuple[int, ...] | None = None, *, show: bool = True, **overrides: Any
) -> Summary:
    """What a model costs. Everything is traced abstractly: no parameter is allocated, nothing is compiled.

    Args:
      model: a name of ``zoo.list_models()``, or a model.
      input_shape: of one example, without the batch axis; default the model's own image size.
      show: print the table.
      **overrides: as ``zoo.create`` takes them; only with a name.

    Raises:
      ValueError: overrides for a model already made, or a model whose input shape is unknown.
    """
    made: Any = model
    if isinstance(model, str):
        name, made = model, create_abstract(model, **overrides)
    elif overrides:
        raise ValueError(f"the model is already made: {', '.join(overrides)} can be given with a name only")
    else:
        name = getattr(model, "variant", type(model).__name__)
    shape = (1, *(_own_input_shape(made) if input_shape is None else input_shape))
    # Two axes are token ids, more are pixels.
    x = jax.ShapeDtypeStruct(shape, jnp.int32 if len(shape) == 2 else jnp.float32)
    graphdef, state = nnx.split(made)
    state = _abstract(state)
    calls: list[_Call] = []
    output: list[tuple[int, ...]] = []

    def forward(state: nnx.State, x: Any) -> Any:
        copy = nnx.merge(graphdef, state)
        copy.eval()
        _watch(copy, calls)
        y = copy(x)
        output.append(_output_shape(y))
        return y

    with dispatch.recording() as choices:
        total = operations.count(forward, state, x)
    rows = _rows(calls)
    parameters = parameter_count(made)
    rest = Row(
        "(rest)", "", output[0], parameters - sum(r.parameters for r in rows), total.flops - sum(r.flops for r in rows)
    )
    result = Summary(
        name=name,
        input_shape=shape,
        parameters=parameters,
        statistics=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(made, Statistic))),
        flops=total.flops,
        multiply_adds=total.matmul_flops // 2,
        choices=dict(collections.Counter(map(str, choices))),
        ignored=ignored(made),
        rows=(*rows, rest),
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


def _own_input_shape(model: nnx.Module) -> tuple[int, ...]:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "image_size"):
        return config.image_size, config.image_size, config.in_channels
    if hasattr(config, "vocab_size") and hasattr(config, "max_length"):
        return (config.max_length,)
    raise ValueError(
        f"{type(model).__name__} does not tell the shape of its input: give input_shape, without the batch axis"
    )


@dataclasses.dataclass(frozen=True)
class _Call:
    """What counting needs from a call of one part; ``again`` says that its parameters are an earlier part's."""

    name: str
    kind: str
    again: bool
    graphdef: nnx.GraphDef
    state: nnx.State
    arguments: tuple[Any, Any]
    output: tuple[int, ...]


def _parts(module: nnx.Module, name: str = "") -> list[tuple[str, nnx.Module]]:
    """The parts that have a row: modules that hold a stack are opened, and so are stacks and lists."""
    found: list[tuple[str, nnx.Module]] = []
    for key, child in nnx.iter_children(module):
        path = f"{name}.{key}" if name else str(key)
        opened = type(child) is nnx.List or any(isinstance(inner, Stack) for _, inner in nnx.iter_modules(child))
        found += _parts(child, path) if opened else [(path, child)]
    return found


def _watch(model: nnx.Module, calls: list[_Call]) -> None:
    """Makes every part of ``model``, a copy made for this trace alone, note its calls."""
    again: set[str] = set()  # names of further places of one block, whose parameters count once
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Stack):
            # A scanned or recomputed block is another copy, which is not observed.
            module.scan = module.remat = False
            for i, block in enumerate(module):
                if any(block is module[before] for before in range(i)):
                    setattr(module, str(i), nnx.clone(block))
                    again.add(".".join(map(str, (*path, i))))
    for name, part in _parts(model):
        cls = type(part)
        if not callable(part):
            continue
        graphdef, state = nnx.split(part)
        known = (name, name in again, graphdef, _abstract(state))

        def call(self: Any, *args: Any, _cls: type = cls, _known: tuple[Any, ...] = known, **kwargs: Any) -> Any:
            y = _cls.__call__(self, *args, **kwargs)
            name, again, graphdef, state = _known
            calls.append(
                _Call(
                    name, _cls.__name__, again, graphdef, state, (_abstract(args), _abstract(kwargs)), _output_shape(y)
                )
            )
            return y

        metaclass: Any = type(cls)
        watched = metaclass(cls.__name__, (cls,), {})
        watched.__call__ = call  # after the class is made: a mixer's own class may not define it
        part.__class__ = watched


def _rows(calls: list[_Call]) -> list[Row]:
    rows: dict[str, Row] = {}
    counted: dict[Any, int] = {}
    for call in calls:
        # Equal blocks cost the same: count each kind once.
        leaves, treedef = jax.tree.flatten((call.state, call.arguments))
        key = (call.graphdef, treedef, tuple(leaves))
        if key not in counted:
            counted[key] = _flops(call)
        parameters = (
            0
            if call.again
            else sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.filter_state(call.state, nnx.Param)))
        )
        before = rows.get(call.name)
        rows[call.name] = Row(
            call.name, call.kind, call.output, parameters, counted[key] + (before.flops if before else 0)
        )
    return list(rows.values())


def _flops(call: _Call) -> int:
    leaves, treedef = jax.tree.flatten(call.arguments)
    # Anything that is not an array (a grid's size) is not an argument of the program.
    traced = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves]

    def run(state: nnx.State, given: list[Any]) -> Any:
        arrays = iter(given)
        args, kwargs = jax.tree.unflatten(
            treedef, [next(arrays) if t else leaf for t, leaf in zip(traced, leaves, strict=True)]
        )
        return nnx.merge(call.graphdef, state)(*args, **kwargs)

    return operations.count(run, call.state, [leaf for t, leaf in zip(traced, leaves, strict=True) if t]).flops


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf, tree
    )


def _output_shape(y: Any) -> tuple[int, ...]:
    leaves = jax.tree.leaves(y)
    return tuple(leaves[0].shape) if leaves else ()


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
