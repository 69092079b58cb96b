"""Two-way maps between the parameter names of released checkpoints and ours.

A :class:`Naming` is a table of rules ``(released, ours, *operations)``. Both names are templates, in
which ``{i}`` matches one component and has the same value on both sides::

    ("blocks.{i}.norm1", "blocks.{i}.mixer_norm")                                    # a module: all its leaves
    ("blocks.{i}.attn.qkv", ("blocks.{i}.mixer.query", "blocks.{i}.mixer.key",
                             "blocks.{i}.mixer.value"), Split())                     # one of theirs, three of ours
    ("cls_token", "class_token", Rearrange("1 n d -> n d"))                          # a parameter
    ("h.{i}.experts.{each}.up.weight", "blocks.{i}.experts.up.kernel", Join(), Rearrange("e o i -> e i o"))

``{each}``, on their side alone, counts from 0 over the first axis of our array. Where our side is a module, its leaves
are renamed and transposed by their kind (PyTorch's ``weight`` of a linear layer is our ``kernel`` transposed, and so
on). Operations are written in the direction of loading, from their side to ours. They are a closed set and each has an
inverse, so that exporting what was loaded gives the same bits.
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
    """What an operation may know about the model: its configuration, and the indices of the rule's templates that our
    arrays belong to."""

    config: Any
    where: tuple[int, ...]


class Operation:
    """A step from released arrays to ours, with its inverse. ``shapes`` are those of our side."""

    def export_shapes(self, shapes: list[Shape], context: Context) -> list[Shape]:
        """Shapes on the released side of arrays that have ``shapes`` on ours."""
        raise NotImplementedError

    def load(self, arrays: list[np.ndarray], shapes: list[Shape], context: Context) -> list[np.ndarray]:
        """Converts arrays of the released side to ours, which must have ``shapes``."""
        raise NotImplementedError

    def export(self, arrays: list[np.ndarray], context: Context) -> list[np.ndarray]:
        """Converts arrays of our side to the released one."""
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
    """Several released arrays are one of ours, stacked on its first axis."""

    def export_shapes(self, shapes: list[Shape], context: Context) -> list[Shape]:
        return [shapes[0][1:]] * shapes[0][0]

    def load(self, arrays: list[np.ndarray], shapes: list[Shape], context: Context) -> list[np.ndarray]:
        return [np.stack(arrays)]

    def export(self, arrays: list[np.ndarray], context: Context) -> list[np.ndarray]:
        return list(arrays[0])


class Rearrange(Operation):
    """Reshape and permute by a pattern such as ``"1 (h w) d -> h w d"``; parentheses join axes, ``1`` is an axis of
    one.

    The sizes of joined axes follow from our shape; where they don't, give them by name, as a number or as a field of
    the configuration: ``Rearrange("d h k -> d (h k)", h="num_heads")``. Several arrays must have one shape.
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
    """A separate operation for each of our arrays, in the order of the rule's templates; None leaves one as it is."""

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
    """Reverses arrays along ``axes``: for tables over offsets that are counted from key to query rather than from query
    to key.
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

    With ``written=False`` files that we write leave them out too, as safetensors files do, which hold no array twice.
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
class Naming:
    """The names and layouts of one family of released files.

    Attributes:
      rules: ``(released, ours, *operations)``, see the module's docstring. The first rule that fits applies; parameters
        that no rule covers can't be exported.
      layout: "torch", or "jax": leaves named and laid out as ours, components joined by "/".
      tables: our names, as templates, of tables over a grid, which are resampled if the file's grid differs.
      config: configuration fields in which a model that holds everything in such a file differs from the variant.
      prefix: stands before all names but the head's in files of whole models, and is missing in those of bare
        backbones.
      ignore: released names, as templates, that are not part of the model.
      buffers: released constants that our model computes, by template. A value is a function ``(config, where)`` of the
        configuration and the template's fields (integers where they are numbers), which returns None if a module has no
        such constant. A constant belongs to the modules named by the template without its last component; where that
        names no module with parameters, a slash marks the end of the module's name ("layers.{s}/position.angle"). They
        are always written. Files may leave them out, or have them in other shapes, for images of another size.
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
        templates = [template for released, *_ in self.rules for template in each_template(released)]
        templates += [name.replace("/", ".") for name in self.buffers]
        patterns = (re.sub(r"\(\?P<\w+>", "(?:", template_pattern(template)) for template in templates)
        return re.compile(rf"(?:{'|'.join(patterns)})(?:[./][^./]+)?")

    def names_of(self, ours: Iterable[str]) -> list[str]:
        """Patterns of all released names that belong to our parts ``ours`` (first components of names, such as
        "head")."""
        first = tuple(ours)
        found = []
        for released, targets, *_ in self.rules:
            if any(target.split(".")[0] in first for target in each_template(targets)):
                found += [template_pattern(template) + r"([./][^./]+)?" for template in each_template(released)]
        return found


ZOO = Naming(rules=(), tables=())
"""Our own dotted names, as they are."""


def template_pattern(template: str) -> str:
    """The regular expression of a template: ``{name}`` matches one component, ``**`` any number of them."""
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^./]+)", re.escape(template)).replace(r"\*\*", ".*")


def each_template(value: Any) -> tuple[Any, ...]:
    """One side of a rule, a template or several, as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)
