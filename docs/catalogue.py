"""The tables of what is in the zoo, generated from the registries: ``python -m docs.catalogue --write README.md``.

Tables are between ``<!-- catalogue:NAME -->`` and ``<!-- end -->`` markers, and a test fails when they differ from what
the code generates.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from flax import nnx

import layers
import pallas_kernels
import tasks
import zoo
from layers.making import abstract
from pallas_kernels import dispatch
from zoo.creation import create_abstract
from zoo.registry import Variant, variant

MARKED = re.compile(r"(<!-- catalogue:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def as_code(text: str) -> str:
    """References of docstrings, such as ``:class:`Name```, as code."""
    return re.sub(r":(?:class|func|mod|meth|attr|data):`~?([^`]+)`", r"`\1`", text)


def first_paragraph(thing: object) -> str:
    """The first paragraph of a docstring on one line, without its full stop."""
    paragraph = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return as_code(paragraph).rstrip(".").replace("|", "\\|")


@functools.cache
def built(name: str) -> Any:
    """A model with shapes in place of arrays, built once for all pages."""
    return create_abstract(name)


def parameter_count(name: str) -> int:
    """Parameters of a model, from shapes alone."""
    return layers.parameter_count(built(name))


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def module_of(family: str) -> ModuleType:
    """The module that registers a family: its file has the family's name, or what comes before the last "_" of it."""
    kinds = ("vision", "language", "series")
    names = (f"zoo.{kind}.{name}" for name in (family, family.rpartition("_")[0]) for kind in kinds)
    return next(sys.modules[name] for name in names if name in sys.modules)


def models() -> str:
    """One row for each architecture: its paper, its number of models, and one of them with its size."""
    families: dict[str, list[Variant]] = {}
    for name in zoo.list_models():
        families.setdefault(variant(name).family, []).append(variant(name))
    rows = []
    for family, members in sorted(families.items()):
        example = min(members, key=lambda member: (not member.published, len(member.name), member.name)).name
        about, size = first_paragraph(module_of(family)), _size(parameter_count(example))
        rows.append([f"`{family}`", about, str(len(members)), f"`{example}`", size])
    return table(["architecture", "what it is", "models", "for example", "parameters"], rows)


def mixers() -> str:
    """One row for each mixer: its layouts, directions, streaming and handling of packed documents."""
    rows = []
    for name in layers.list_mixers():
        cls = layers.mixer_class(name)
        sight = " and ".join(
            word
            for word, has in (("causal", cls.supports_causal), ("bidirectional", cls.supports_bidirectional))
            if has
        )
        streaming = cls.streaming if cls.supports_causal else ""
        rows.append([f"`{name}`", first_paragraph(cls), ", ".join(cls.layouts), sight, streaming, documents(name)])
    return table(["mixer", "what it is", "takes", "direction", "streaming", "packed documents"], rows)


def reductions() -> str:
    """One row for each reduction: the tokens it leaves of a grid."""
    rows = []
    for name in layers.list_reductions():
        reduction = nnx.eval_shape(
            lambda name=name: layers.create_reduction(name, 16, extent=(14, 14), rngs=nnx.Rngs(0))
        )
        left = reduction.extent_after((14, 14))
        shown = f"{left} tokens, no grid" if isinstance(left, int) else f"{left[0]} x {left[1]}"
        rows.append([f"`{name}`", first_paragraph(type(reduction)), shown])
    return table(["reduction", "what it is", "of 14 x 14 tokens"], rows)


def documents(name: str) -> str:
    """How a sequence mixer with its default options handles documents packed into one row."""
    cls = layers.mixer_class(name)
    if "sequence" not in cls.layouts:
        return ""
    options: dict[str, Any] = {"causal": cls.supports_causal, "place": layers.Place(num_heads=2)}
    mixer = abstract(lambda rngs: layers.create_mixer(name, 16, **options, rngs=rngs))
    if "segment_ids" in mixer.honors:
        return "apart" if mixer.segment_multiple == 1 else f"apart, from multiples of {mixer.segment_multiple}"
    reason = mixer.refusals.get("segment_ids", "")
    return f"refused: {reason.partition(':')[0]}" if reason else "refused"


def ops() -> str:
    """One row for each op: its implementations and their hardware, in order of preference."""
    rows = []
    for name, op in sorted(dispatch.OPS.items()):
        served = "; ".join(
            f"`{i.name}` ({' and '.join(i.platforms) if i.platforms else 'everywhere'})" for i in op.implementations
        )
        rows.append([f"`{name}`", first_paragraph(getattr(pallas_kernels, name)), served])
    return table(["op", "what it computes", "implementations"], rows)


def task_table() -> str:
    """One row for each task."""
    return table(
        ["task", "what it is"], [[f"`{name}`", first_paragraph(tasks.lookup(name))] for name in tasks.list_tasks()]
    )


TABLES = {"models": models, "mixers": mixers, "reductions": reductions, "ops": ops, "tasks": task_table}


def refresh(text: str) -> str:
    """``text`` with every marked table regenerated."""
    return MARKED.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


def main() -> None:
    """Prints all tables, or writes them into the marked places of files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", nargs="*", type=Path, default=[], help="files whose marked tables to refresh")
    files = parser.parse_args().write
    for path in files:
        path.write_text(refresh(path.read_text()))
    if not files:
        print("\n".join(make() for make in TABLES.values()))


if __name__ == "__main__":
    main()
