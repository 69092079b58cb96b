"""Turns the rules of a naming into a plan: an entry for every array of a model.

Rules name modules; a plan names arrays, with their shapes and the operations between the two sides. Files are read,
written and compared with models by plans alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from zoo.naming import ZOO, Context, Naming, Operation, Shape, Tie, each_template, template_pattern


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


_COLORS = 3
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
class Entry:
    """One entry of a plan: released arrays, ours, and the operations between them.

    Attributes:
      released, ours: names; ``ours`` is empty for a released constant.
      operations: from the released side to ours.
      shapes: of our arrays.
      context: for the operations.
      constant: value of a released array that our model does not have.
      computed: the constant is a buffer; if a file has it, its value must be the same.
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
        """This entry with its table over the grid that a file with ``released`` shapes was made for, a square or, for a
        table of one row, a sequence; None if no grid fits."""
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

    def with_colors_of(self, released: Mapping[str, Shape], channels: int) -> Entry | None:
        """This entry with a kernel on red, green and blue in place of ours on ``channels`` channels, if that fits the
        file's ``released`` shapes; else None."""
        if len(self.ours) != 1 or len(self.shapes[0]) != 4 or self.shapes[0][2] != channels or channels == _COLORS:
            return None
        height, width, _, features = self.shapes[0]
        entry = dataclasses.replace(self, shapes=((height, width, _COLORS, features),))
        return entry if entry.released_shapes() == dict(released) else None

    def untied(self, others: Collection[str]) -> Entry:
        """This entry without those of its optional names that are in ``others``: for a head that is not the
        embedding."""
        further = tuple(name for name in self.optional if name not in others)
        ties = (dataclasses.replace(op, count=1 + len(further)) for op in self.operations if isinstance(op, Tie))
        rest = tuple(op for op in self.operations if not isinstance(op, Tie))
        return dataclasses.replace(
            self,
            released=(*self.released[:1], *further),
            operations=(*ties, *rest) if further else rest,
            optional=further,
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
      ValueError: parameters that no rule covers.
    """
    context = Context(config, (0,))
    if naming is ZOO:
        return [
            Entry((name,), (name,), (), (shape,), context, table=0 if name.endswith(".table") else None)
            for name, shape in shapes.items()
        ]
    rules = [
        (each_template(released), [re.compile(template_pattern(t)) for t in each_template(ours)], ops)
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
        released = tuple(
            template.format(**fields, each=n)
            for template in rules[number][0]
            for n in (range(shapes[name][0]) if "{each}" in template else (0,))
        )
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
    return [entry.untied(firsts) if firsts & set(entry.optional) else entry for entry in entries]


def _buffers(naming: Naming, entries: list[Entry], context: Context) -> list[Entry]:
    """Entries for the constants of the modules that occur in released names."""
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
