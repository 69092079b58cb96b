"""Two-way maps between the parameter names of released checkpoints and ours.

A :class:`Naming` is a table of rules ``(released, ours, *operations)``. Both names are templates, in
which ``{i}`` matches one component and has the same value on both sides::

    ("blocks.{i}.norm1", "blocks.{i}.mixer_norm")                                    # a module: all its leaves
    ("blocks.{i}.attn.qkv", ("blocks.{i}.mixer.query", "blocks.{i}.mixer.key",
                             "blocks.{i}.mixer.value"), Split())                     # one of theirs, three of ours
    ("cls_token", "class_token", Rearrange("1 n d -> n d"))                          # a parameter

Where our side is a module, its leaves are renamed and transposed by their kind (PyTorch's ``weight``
of a linear layer is our ``kernel`` transposed, and so on). Operations read from their side to ours.
They are a closed set and each has an inverse, so that exporting what was loaded gives the same bits.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Context:
    """What an operation may know about the model: its configuration, and which of the rule's templates our arrays
    belong to."""

    config: Any
    where: tuple[int, ...]


class Operation:
    """A step from released arrays to ours, with its inverse. ``shapes`` are those of our side."""

    def export_shapes(self, shapes: list[Shape], context: Context) -> list[Shape]:
        """Shapes on the released side of arrays that have ``shapes`` on ours."""
        raise NotImplementedError

    def load(self, arrays: list[np.ndarray], shapes: list[Shape], context: Context) -> list[np.ndarray]:
        """From the released side to ours, whose shapes are to be ``shapes``."""
        raise NotImplementedError

    def export(self, arrays: list[np.ndarray], context: Context) -> list[np.ndarray]:
        """From our side to the released one."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Split(Operation):
    """One released array is several of ours side by side along ``axis``: fused queries, keys and values."""

    axis: int = 0

    def export_shapes(self, shapes: list[Shape], context: Context) -> list[Shape]:
        first = list(shapes[0])
        first[self.axis] = sum(shape[self.axis] for shape in shapes)
        return [tuple(first)]

    def load(self, arrays: list[np.ndarray], shapes: list[Shape], context: Context) -> list[np.ndarray]:
        ends = np.cumsum([shape[self.axis] for shape in shapes])[:-1]
        return np.split(arrays[0], ends, axis=self.axis)

    def export(self, arrays: list[np.ndarray], context: Context) -> list[np.ndarray]:
        return [np.concatenate(arrays, self.axis)]


@dataclasses.dataclass(frozen=True)
class Unstack(Operation):
    """One released array is several of ours on a new ``axis``: the layers of a scanned stack."""

    axis: int = 0

    def export_shapes(self, shapes: list[Shape], context: Context) -> list[Shape]:
        return [(*shapes[0][: self.axis], len(shapes), *shapes[0][self.axis :])]

    def load(self, arrays: list[np.ndarray], shapes: list[Shape], context: Context) -> list[np.ndarray]:
        return list(np.moveaxis(arrays[0], self.axis, 0))

    def export(self, arrays: list[np.ndarray], context: Context) -> list[np.ndarray]:
        return [np.stack(arrays, self.axis)]


@dataclasses.dataclass(frozen=True)
class Join(Operation):
    """Several released arrays are one of ours, on its first axis."""

    def export_shapes(self, shapes: list[Shape], context: Context) -> list[Shape]:
        return [shapes[0][1:]] * shapes[0][0]

    def load(self, arrays: list[np.ndarray], shapes: list[Shape], context: Context) -> list[np.ndarray]:
        return [np.stack(arrays)]

    def export(self, arrays: list[np.ndarray], context: Context) -> list[np.ndarray]:
        return list(arrays[0])


class Rearrange(Operation):
    """Reshape and permute by a pattern such as ``"1 (h w) d -> h w d"``; parentheses join axes, ``1`` is an axis of
    one.

    The sizes of joined axes follow from our shape; where they do not, name them, as a number or as a
    field of the configuration: ``Rearrange("d h k -> d (h k)", h="num_heads")``. Several arrays are alike.
    """

    def __init__(self, pattern: str, **sizes: int | str):
        self.pattern, self.sizes = pattern, sizes
        released, ours = (_groups(side) for side in pattern.split("->"))
        self.released, self.ours = released, ours
        names = [[name for group in side for name in group if name != "1"] for side in (released, ours)]
        if sorted(names[0]) != sorted(names[1]):
            raise ValueError(f"the two sides of {pattern!r} have different axes")
        self.order = [names[0].index(name) for name in names[1]]
        self.names = names[0]

    def __repr__(self) -> str:
        return f"Rearrange({self.pattern!r})"

    def export_shapes(self, shapes: list[Shape], context: Context) -> list[Shape]:
        sizes = self._solve(shapes[0], context)
        return [tuple(int(np.prod([sizes[name] for name in group])) for group in self.released)] * len(shapes)

    def load(self, arrays: list[np.ndarray], shapes: list[Shape], context: Context) -> list[np.ndarray]:
        sizes = self._solve(shapes[0], context)
        return [
            a.reshape([sizes[name] for name in self.names]).transpose(self.order).reshape(shapes[0]) for a in arrays
        ]

    def export(self, arrays: list[np.ndarray], context: Context) -> list[np.ndarray]:
        sizes = self._solve(arrays[0].shape, context)
        inner, outer = (
            [sizes[self.names[i]] for i in self.order],
            [int(np.prod([sizes[name] for name in group])) for group in self.released],
        )
        return [a.reshape(inner).transpose(np.argsort(self.order)).reshape(outer) for a in arrays]

    def _solve(self, shape: Shape, context: Context) -> dict[str, int]:
        sizes = {
            name: getattr(context.config, size) if isinstance(size, str) else size for name, size in self.sizes.items()
        } | {"1": 1}
        if len(shape) != len(self.ours):
            raise ValueError(f"{self.pattern!r} does not describe our array of shape {shape}")
        for group, size in zip(self.ours, shape, strict=True):
            known = int(np.prod([sizes.get(name, 1) for name in group]))
            unknown = [name for name in group if name not in sizes]
            if len(unknown) > 1 or size % known or (not unknown and size != known):
                raise ValueError(f"{self.pattern!r} does not describe our array of shape {shape}")
            sizes.update(dict.fromkeys(unknown, size // known))
        return sizes


def _groups(side: str) -> list[list[str]]:
    return [(joined or single).split() for joined, single in re.findall(r"\(([^)]*)\)|(\S+)", side)]


@dataclasses.dataclass(frozen=True)
class Each(Operation):
    """Another operation for each of our arrays, in the order of the rule's templates; None leaves one as it is."""

    operations: tuple[Operation | None, ...]

    def export_shapes(self, shapes: list[Shape], context: Context) -> list[Shape]:
        return [
            op.export_shapes([s], context)[0] if op else s for op, s in zip(self._chosen(context), shapes, strict=True)
        ]

    def load(self, arrays: list[np.ndarray], shapes: list[Shape], context: Context) -> list[np.ndarray]:
        return [
            op.load([a], [s], context)[0] if op else a
            for op, a, s in zip(self._chosen(context), arrays, shapes, strict=True)
        ]

    def export(self, arrays: list[np.ndarray], context: Context) -> list[np.ndarray]:
        return [op.export([a], context)[0] if op else a for op, a in zip(self._chosen(context), arrays, strict=True)]

    def _chosen(self, context: Context) -> list[Operation | None]:
        return [self.operations[i] for i in context.where]


@dataclasses.dataclass(frozen=True)
class Flip(Operation):
    """Arrays read backwards along ``axes``: tables over offsets that are counted from key to query rather than from
    query to key.
    """

    axes: tuple[int, ...]

    def export_shapes(self, shapes: list[Shape], context: Context) -> list[Shape]:
        return shapes

    def load(self, arrays: list[np.ndarray], shapes: list[Shape], context: Context) -> list[np.ndarray]:
        return [np.flip(a, self.axes) for a in arrays]

    def export(self, arrays: list[np.ndarray], context: Context) -> list[np.ndarray]:
        return [np.flip(a, self.axes) for a in arrays]


class Complex(Operation):
    """A released real array whose last axis holds real and imaginary part; ours is complex."""

    def export_shapes(self, shapes: list[Shape], context: Context) -> list[Shape]:
        return [(*shape, 2) for shape in shapes]

    def load(self, arrays: list[np.ndarray], shapes: list[Shape], context: Context) -> list[np.ndarray]:
        return [np.ascontiguousarray(a).view(np.result_type(a.dtype, np.complex64))[..., 0] for a in arrays]

    def export(self, arrays: list[np.ndarray], context: Context) -> list[np.ndarray]:
        return [np.ascontiguousarray(a)[..., None].view(a.real.dtype) for a in arrays]


@dataclasses.dataclass(frozen=True)
class Tie(Operation):
    """Several released names for one array of ours: an embedding that is also the output layer. A file may leave out
    all but the first.

    With ``written`` False ours leave them out too, as files of safetensors do, which hold no array twice.
    """

    count: int = 2
    written: bool = True

    def export_shapes(self, shapes: list[Shape], context: Context) -> list[Shape]:
        return shapes * self.count

    def load(self, arrays: list[np.ndarray], shapes: list[Shape], context: Context) -> list[np.ndarray]:
        if any(not np.array_equal(arrays[0], other) for other in arrays[1:]):
            raise ValueError("they are one array in the model, and differ in the file")
        return arrays[:1]

    def export(self, arrays: list[np.ndarray], context: Context) -> list[np.ndarray]:
        return arrays * (self.count if self.written else 1)


@dataclasses.dataclass(frozen=True)
class _Permute(Operation):
    """The transposition that a framework's layout asks for; ``axes`` of the released array in our order."""

    axes: tuple[int, ...]

    def export_shapes(self, shapes: list[Shape], context: Context) -> list[Shape]:
        return [tuple(shape[i] for i in np.argsort(self.axes)) for shape in shapes]

    def load(self, arrays: list[np.ndarray], shapes: list[Shape], context: Context) -> list[np.ndarray]:
        return [a.transpose(self.axes) for a in arrays]

    def export(self, arrays: list[np.ndarray], context: Context) -> list[np.ndarray]:
        return [a.transpose(np.argsort(self.axes)) for a in arrays]


_TORCH_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# Linear (out, in); 1-D convolution (out, in, k); 2-D (out, in, kh, kw); depth-wise ones have in = 1. Ours end in (in,
# out).
_TORCH_KERNELS = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0)}


@dataclasses.dataclass(frozen=True)
class Naming:
    """The names and layouts of one family of released files.

    Attributes:
      rules: ``(released, ours, *operations)``, as the module's docstring says. Names that no rule of
        ours covers can't be exported; the first rule that fits counts.
      layout: "torch", or "jax": leaves named and laid out as ours, components joined by "/".
      tables: our names, as templates, of tables over a grid, which are resampled when the file's grid is another one.
      config: fields in which a model that holds all of such a file differs from the variant.
      prefix: what whole models put before all names but the head's, and bare backbones leave out.
      ignore: released names, as templates, that are not part of the model.
      buffers: released constants that our model computes, by template: functions ``(config, where)`` of the
        configuration and the template's fields, as numbers where they are; None where a module has no such constant.
        They belong to the modules that have the template's name without its last component, or, where that one has no
        parameters, to those whose name ends at a slash ("layers.{s}/position.angle"). Written always; files may leave
        them out, or have been made for images of another size, whose constants have other shapes.
    """

    rules: Sequence[tuple[Any, ...]]
    layout: Literal["torch", "jax"] = "torch"
    tables: tuple[str, ...] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    ignore: tuple[str, ...] = ()
    buffers: Mapping[str, Callable[[Any, Mapping[str, Any]], np.ndarray | None]] = dataclasses.field(
        default_factory=dict
    )

    def ignores(self, name: str) -> bool:
        return any(re.fullmatch(template_pattern(template), name) for template in self.ignore)

    def covers(self, name: str) -> bool:
        """Whether a rule has a place for a released name, judged by names alone."""
        return self._names.fullmatch(name) is not None

    @functools.cached_property
    def _names(self) -> re.Pattern[str]:
        templates = [template for released, *_ in self.rules for template in _tuple(released)]
        templates += [name.replace("/", ".") for name in self.buffers]
        patterns = (re.sub(r"\(\?P<\w+>", "(?:", template_pattern(template)) for template in templates)
        return re.compile(rf"(?:{'|'.join(patterns)})(?:[./][^./]+)?")

    def names_of(self, ours: Iterable[str]) -> list[str]:
        """Patterns of all released names that rules give to our modules of these first components ("head")."""
        first = tuple(ours)
        found = []
        for released, targets, *_ in self.rules:
            if any(target.split(".")[0] in first for target in _tuple(targets)):
                found += [template_pattern(template) + r"([./][^./]+)?" for template in _tuple(released)]
        return found


ZOO = Naming(rules=(), tables=())
"""Our own dotted names, as they are."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a plan: released arrays, ours, and what lies between.

    Attributes:
      released, ours: names; ``ours`` is empty for a released constant.
      operations: from the released side to ours.
      shapes: of our arrays.
      context: for the operations.
      constant: value of a released array that our model does not have.
      computed: the constant is a buffer, whose value a file must have too.
      optional: released names that a file may leave out.
      table: index of our array that is resampled to another grid, or None.
    """

    released: tuple[str, ...]
    ours: tuple[str, ...]
    operations: tuple[Operation, ...]
    shapes: tuple[Shape, ...]
    context: Context
    constant: np.ndarray | None = None
    computed: bool = False
    optional: tuple[str, ...] = ()
    table: int | None = None

    def released_shapes(self) -> dict[str, Shape]:
        """The shapes that the released arrays must have."""
        if self.constant is not None:
            return {self.released[0]: self.constant.shape}
        return dict(zip(self.released, self._stages()[0], strict=True))

    def load(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Our arrays by name, from the released ones."""
        found, stages = list(arrays), self._stages()
        for operation, shapes in zip(self.operations, stages[1:], strict=True):
            found = operation.load(found, shapes, self.context)
        return dict(zip(self.ours, found, strict=True))

    def export(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Released arrays by name, from ours."""
        if self.constant is not None:
            return {self.released[0]: self.constant}
        found = [arrays[name] for name in self.ours]
        for operation in reversed(self.operations):
            found = operation.export(found, self.context)
        return dict(zip(self.released, found, strict=not self.optional))

    def with_grid_of(self, released: Mapping[str, Shape]) -> Entry | None:
        """This entry for a table over the square grid, or over the sequence where it has one row, that a file with
        ``released`` shapes was made for; None if there is none."""
        if self.table is None:
            return None
        rows, columns, *rest = self.shapes[self.table]
        grids = [(side, side) for side in range(1, 257)]
        if rows == 1 < columns:
            grids = [(1, length) for length in sorted({size for shape in released.values() for size in shape})]
        for grid in grids:
            shapes = list(self.shapes)
            shapes[self.table] = (*grid, *rest)
            entry = dataclasses.replace(self, shapes=tuple(shapes))
            if all(
                tuple(released[name]) == shape for name, shape in entry.released_shapes().items() if name in released
            ):
                return entry
        return None

    def untied(self) -> Entry:
        """This entry where its further names are those of another array: a head that is not the embedding."""
        return dataclasses.replace(
            self,
            released=self.released[:1],
            operations=tuple(op for op in self.operations if not isinstance(op, Tie)),
            optional=(),
        )

    def _stages(self) -> list[list[Shape]]:
        stages = [list(self.shapes)]
        for operation in reversed(self.operations):
            stages.insert(0, operation.export_shapes(stages[0], self.context))
        return stages


def plan(naming: Naming, shapes: Mapping[str, Shape], config: Any) -> list[Entry]:
    """How each released array becomes arrays of a model.

    Args:
      naming: of the file.
      shapes: of the model's leaves, by dotted name.
      config: of the model.

    Raises:
      ValueError: leaves that no rule names.
    """
    context = Context(config, (0,))
    if naming is ZOO:
        return [
            Entry((name,), (name,), (), (shape,), context, table=0 if name.endswith(".table") else None)
            for name, shape in shapes.items()
        ]
    rules = [
        (_tuple(released), [re.compile(template_pattern(t)) for t in _tuple(ours)], ops)
        for released, ours, *ops in naming.rules
    ]
    tables = [re.compile(template_pattern(template)) for template in naming.tables]
    grouped: dict[tuple[Any, ...], list[tuple[int, tuple[int, ...], str]]] = {}
    nameless = []
    for name in shapes:
        found = _find(name, rules)
        if found is None:
            nameless.append(name)
            continue
        number, which, fields, leaf = found
        released = tuple(template.format(**fields) for template in rules[number][0])
        extra = tuple(
            int(v) for k, v in sorted(fields.items()) if v.isdigit() and f"{{{k}}}" not in rules[number][0][0]
        )
        grouped.setdefault((number, released, leaf), []).append((which, extra, name))
    if nameless:
        raise ValueError(
            f"{len(nameless)} parameters have no released name: "
            f"{', '.join(nameless[:5])}{', ...' if len(nameless) > 5 else ''}"
        )
    entries = []
    for (number, released, leaf), members in grouped.items():
        members.sort()
        ours = tuple(name for _, _, name in members)
        own = tuple(tuple(shapes[name]) for name in ours)
        operations = tuple(rules[number][2])
        constants: list[Entry] = []
        if leaf is not None:
            released, operations, constants = _leaf(naming.layout, released, leaf, operations, own, context)
        table = next((i for i, name in enumerate(ours) if any(pattern.fullmatch(name) for pattern in tables)), None)
        where = dataclasses.replace(context, where=tuple(which for which, _, _ in members))
        optional = released[1:] if any(isinstance(op, Tie) for op in operations) else ()
        entries += [Entry(released, ours, operations, own, where, optional=optional, table=table), *constants]
    firsts = {entry.released[0] for entry in entries}
    entries += _buffers(naming, entries, context)
    return [entry.untied() if firsts & set(entry.optional) else entry for entry in entries]


def _buffers(naming: Naming, entries: list[Entry], context: Context) -> list[Entry]:
    """The constants of the modules that released names are of."""
    parts = [name.split(".") for entry in entries for name in entry.released] if naming.buffers else []
    modules = dict.fromkeys(".".join(name[:end]) for name in parts for end in range(len(name)))
    found = []
    for template, make in naming.buffers.items():
        parent, _, last = template.partition("/") if "/" in template else template.rpartition(".")
        for module in modules:
            if (match := re.fullmatch(template_pattern(parent), module)) is None:
                continue
            value = make(context.config, {key: int(v) if v.isdigit() else v for key, v in match.groupdict().items()})
            if value is not None:
                name = f"{module}.{last}" if module else last
                found.append(Entry((name,), (), (), (), context, value, computed=True, optional=(name,)))
    return found


def _leaf(
    layout: str,
    released: tuple[str, ...],
    leaf: str,
    operations: tuple[Operation, ...],
    shapes: tuple[Shape, ...],
    context: Context,
) -> tuple[tuple[str, ...], tuple[Operation, ...], list[Entry]]:
    """Names and operations of one leaf of a module that a rule maps as a whole."""
    if layout == "jax":
        return tuple(f"{name}/{leaf}" for name in released), operations, []
    constants = []
    if leaf == "mean":  # PyTorch's batch norm also counts its batches; nothing depends on the count.
        constants = [
            Entry((count,), (), (), (), context, np.zeros((), np.int64), optional=(count,))
            for count in (f"{name}.num_batches_tracked" for name in released)
        ]
    if leaf == "kernel" and len(shapes[0]) in _TORCH_KERNELS:
        operations = (*operations, _Permute(_TORCH_KERNELS[len(shapes[0])]))
    return tuple(f"{name}.{_TORCH_LEAVES.get(leaf, leaf)}" for name in released), operations, constants


def _find(name: str, rules: list[tuple[Any, ...]]) -> tuple[int, int, dict[str, str], str | None] | None:
    """The first rule that covers our ``name``: its number, which of its templates, the fields, and the leaf if it maps
    a module.
    """
    module, _, leaf = name.rpartition(".")
    for number, (_, patterns, _) in enumerate(rules):
        for which, pattern in enumerate(patterns):
            if match := pattern.fullmatch(name):
                return number, which, match.groupdict(), None
            if match := pattern.fullmatch(module):
                return number, which, match.groupdict(), leaf
    return None


def template_pattern(template: str) -> str:
    """The regular expression of a template: ``{name}`` matches one component, ``**`` any number of them."""
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^./]+)", re.escape(template)).replace(r"\*\*", ".*")


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)
