"""Drawings of a model's blocks: SVG made from the modules that the code creates, from shapes alone."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterator
from html import escape
from typing import Any

from flax import nnx

from layers.block import Block
from layers.stack import Stack

LINE, LETTER, PAD, GAP = 15, 7.3, 8, 30
SPINE = 40
MOST = 9
"""Most lines shown for the contents of a module."""
DEPTH = 3
STYLE = (
    "text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#1a237e}.dim{fill:#546e7a}.name{font-weight:600}"
    "rect{fill:#e8eaf6;stroke:#3f51b5;rx:5}.mixer{fill:#fff3e0;stroke:#ef6c00}.norm{fill:#f1f8e9;stroke:#7cb342}"
    "path,circle{fill:none;stroke:#455a64;stroke-width:1.4}.paper{fill:#fff;stroke:none}"
)


@dataclasses.dataclass(frozen=True)
class Box:
    """A module: its title, its contents, and its kind, which sets the color."""

    title: str
    lines: tuple[str, ...] = ()
    kind: str = ""

    @property
    def width(self) -> float:
        """In pixels."""
        return 2 * PAD + LETTER * max(map(len, (self.title, *self.lines)))

    @property
    def height(self) -> float:
        """In pixels."""
        return 2 * PAD + LINE * (1 + len(self.lines)) - 3


@dataclasses.dataclass(frozen=True)
class Row:
    """A residual branch: the columns of boxes it passes through from left to right (boxes in one column are summed),
    and the box after the residual sum.

    ``residual`` is False for the parts of a block that is not a :class:`Block`, which are listed alone.
    """

    columns: tuple[tuple[Box, ...], ...]
    after: Box | None = None
    residual: bool = True


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Blocks of one kind: their heading, and their branches."""

    title: str
    rows: tuple[Row, ...]


def kinds(model: nnx.Module) -> list[Drawn]:
    """The kinds of blocks of a model, in order; blocks that differ only in numbers are one kind."""
    found: dict[Any, list[tuple[str, nnx.Module]]] = {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Stack):
            for i in range(len(module)):
                place = ".".join(map(str, (*path, i)))
                found.setdefault(_kind(_rows(module[i])), []).append((place, module[i]))
    ordered = sorted(found.values(), key=lambda places: _numbers(places[0][0]))
    return [Drawn(_where([place for place, _ in places]), _rows(places[0][1])) for places in ordered]


def _numbers(place: str) -> list[int]:
    return list(map(int, re.findall(r"\d+", place)))


def _where(places: list[str]) -> str:
    if len(places) == 1:
        return f"1 block: {places[0]}"
    return f"{len(places)} blocks of this kind, {places[0]} to {places[-1]}; numbers of the first"


def _kind(rows: tuple[Row, ...]) -> Any:
    """What all blocks of a kind have in common: everything but numbers."""
    return re.sub(r"\d+", "0", repr(rows))


def _rows(block: Any) -> tuple[Row, ...]:
    if not isinstance(block, Block):
        parts = dict(_children(block))
        if not any(isinstance(part, Block) for part in parts.values()):
            return (Row(((_box(block, "mixer"),),), residual=False),)
        rows = []
        for name, part in parts.items():
            if isinstance(part, Block):
                rows += _rows(part)
            elif isinstance(part, nnx.Variable):
                rows.append(Row(((Box(f"{name} {_sides(part.shape)}"),),), residual=False))
            else:
                rows.append(Row(((_box(part, "", name),),), residual=False))
        return tuple(rows)
    rows = []
    for (name, *more), order in block.branches:
        modules = tuple(_box(getattr(block, part), "mixer" if part == "mixer" else "", part) for part in (name, *more))
        norm, post = (_optional(block, name + part, "norm") for part in ("_norm", "_post_norm"))
        columns: list[tuple[Box, ...]] = [modules]
        if norm is not None and order in ("pre", "sandwich", "parallel"):
            columns.insert(0, (norm,))
        columns += [(post,)] if post is not None else [(norm,)] if norm is not None and order == "res_post" else []
        columns += [(box,) for part in ("_scale", "_drop") if (box := _optional(block, name + part)) is not None]
        rows.append(Row(tuple(columns), norm if order == "post" else None))
    return tuple(rows)


def _optional(block: Any, name: str, kind: str = "") -> Box | None:
    module = getattr(block, name, None)
    return None if module is None else Box(type(module).__name__, kind=kind)


def _box(module: Any, kind: str, name: str = "") -> Box:
    lines = list(_inside(module))
    shown = lines if len(lines) <= MOST else [*lines[: MOST - 1], f"and {len(lines) - MOST + 1} more"]
    return Box(f"{name}: {type(module).__name__}" if name else type(module).__name__, tuple(shown), kind)


def _children(module: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a module, in the order in which its code first names them."""
    children = {str(name): child for name, child in nnx.iter_children(module)}
    for name in sorted(children, key=[*_named(type(module)), *children].index):
        if not isinstance(children[name], nnx.RngStream | nnx.Rngs | nnx.RngState):
            yield name, children[name]


@functools.cache
def _named(cls: type) -> tuple[str, ...]:
    """Attributes in the order in which the source of a class and its bases names them: modules made of shapes alone
    have them sorted.
    """
    own = [base for base in reversed(cls.__mro__) if base.__module__.partition(".")[0] in ("layers", "zoo")]
    code = "".join(map(inspect.getsource, own))
    return tuple(dict.fromkeys(re.findall(r"\bself\.(\w+)", code)))


def _inside(module: Any, depth: int = 1) -> Iterator[str]:
    """A line for each part: matrices with their input and output sizes, other parts with their class."""
    for name, child in _children(module):
        indent = "  " * (depth - 1)
        if isinstance(child, nnx.Variable):
            if isinstance(child, nnx.Param):
                yield f"{indent}{name} {_sides(child.shape)}"
            continue
        kernel = getattr(child, "kernel", None)
        if isinstance(kernel, nnx.Variable):
            *window, into, out = kernel.shape if kernel.ndim > 1 else (1, *kernel.shape)
            yield f"{indent}{name} {_sides(window)}{', ' if window else ''}{into} → {out}"
        else:
            yield f"{indent}{name}: {type(child).__name__}"
            if depth < DEPTH and not name.endswith("norm"):
                yield from _inside(child, depth + 1)


def _sides(shape: Any) -> str:
    return "×".join(map(str, shape))


def draw(model: nnx.Module) -> str:
    """An SVG of all kinds of blocks of a model, which may be abstract; each is read from top to bottom."""
    parts: list[str] = []
    y, width = 10.0, 320.0
    for drawn in kinds(model):
        parts.append(_text(10, y + 12, drawn.title, "name"))
        y += 24
        for row in drawn.rows:
            start = y
            y, right = _draw_row(parts, row, y)
            width = max(width, right)
            if row.residual:
                parts.append(_path(f"M{SPINE} {start} V{y}"))
        if drawn.rows[-1].residual or len(drawn.rows) > 1:
            parts.append(_path(f"M{SPINE} {y} v8") + _arrow(SPINE, y + 8))
        y += 26
        width = max(width, 20 + LETTER * 1.1 * len(drawn.title))
    body = "".join(parts)
    size = f'width="{width + 10:.0f}" height="{y:.0f}" viewBox="0 0 {width + 10:.0f} {y:.0f}"'
    paper = '<rect class="paper" width="100%" height="100%"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{paper}{body}</svg>\n'


def _draw_row(parts: list[str], row: Row, y: float) -> tuple[float, float]:
    """Draws a branch starting at ``y``. Returns the y after it and the x of its right end."""
    tall = max(sum(box.height + PAD for box in column) - PAD for column in row.columns)
    middle, x = y + 8 + tall / 2, float(SPINE + GAP if row.residual else 10)
    if row.residual:
        parts.append(_path(f"M{SPINE} {y + 4} H{SPINE + 10} V{middle} H{x - 14}"))
    for number, column in enumerate(row.columns):
        if number:
            parts.append(_path(f"M{x - GAP + 6} {middle} H{x - 14}"))
        wide = max(box.width for box in column)
        top = middle - (sum(box.height + PAD for box in column) - PAD) / 2
        for box in column:
            own = top + box.height / 2
            if number or row.residual:
                parts.append(_path(f"M{x - 14} {middle} V{own} H{x - 2}") + _arrow(x - 2, own, "right"))
            if len(column) > 1:
                parts.append(_path(f"M{x + box.width} {own} H{x + wide + 6} V{middle}"))
            parts.append(_draw_box(box, x, top))
            top += box.height + PAD
        x += wide + GAP - 6
    end = y + tall + 16
    if not row.residual:
        return end, x
    back = _path(f"M{x - GAP + 6} {middle} H{x - 8} V{end + 10} H{SPINE + 9}")
    parts.append(back + _arrow(SPINE + 9, end + 10, "left"))
    parts.append(f'<circle cx="{SPINE}" cy="{end + 10}" r="8"/>' + _path(f"M{SPINE - 8} {end + 10} h16"))
    end += 24
    if row.after is not None:
        parts.append(_arrow(SPINE, end + 6) + _draw_box(row.after, SPINE - 24, end + 6))
        end += row.after.height + 14
    return end, x


def _draw_box(box: Box, x: float, y: float) -> str:
    lines = [_text(x + PAD, y + PAD + 9, box.title, "name")]
    lines += [_text(x + PAD, y + PAD + 9 + LINE * (n + 1), line, "dim") for n, line in enumerate(box.lines)]
    size = f'width="{box.width:.1f}" height="{box.height:.1f}"'
    return f'<rect class="{box.kind}" x="{x:.1f}" y="{y:.1f}" {size}/>' + "".join(lines)


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" xml:space="preserve">{escape(text)}</text>'


def _path(d: str) -> str:
    return f'<path d="{d}"/>'


def _arrow(x: float, y: float, to: str = "down") -> str:
    d = {"down": "m-4 -6 l4 6 l4 -6", "right": "m-6 -4 l6 4 l-6 4", "left": "m6 -4 l-6 4 l6 4"}[to]
    return _path(f"M{x:.1f} {y:.1f} {d}")
