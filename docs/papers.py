"""The catalogue of the roster: every paper, what the zoo owes it, and what of that is there. ``python -m docs.papers``
writes docs/papers.md.

What is owed stands in docs/papers.tsv, a row a paper; nothing there says what is done. What is done is what the
registries and the results hold: whatever is registered names the rows that it implements (``paper``), and a row is
"there" once all that it is owed is found.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib
import json
import re
from collections.abc import Iterator, Mapping

import layers
import tasks
import zoo
from docs.catalogue import documents, module_of, table
from docs.kernels import GPU_RESULTS
from docs.results import CLAIMS, HOME, merged
from pallas_kernels import dispatch
from primitives import sequence
from tests.layers.sequence_run import CASES as SPLIT
from zoo.registry import variant

ROSTER = HOME / "docs" / "papers.tsv"
WEIGHTS = HOME / "docs" / "weights.md"
PAGE = HOME / "docs" / "papers.md"
VERDICTS = {True: "holds", False: "**does not hold here**", None: "not judged"}
# What belongs to a paper and no registry lists.
FUNCTIONS = {
    17: ("block", "layers.subspace_attention:SubspaceAttention"),
    25: ("block", "layers.efficient_local_attention:EfficientLocalAttention"),
    41: ("block", "layers.efficient_channel_attention:EfficientChannelAttention"),
    30: ("analysis", "zoo.dynamics:dynamics"),
    156: ("analysis", "zoo.vision.vit:outlier_norms"),
    167: ("block", "layers.randomized_positions:RandomizedPlaces"),
    165: ("training", "layers.state_space.initialization:MIMETIC_A_LOG"),
    239: ("analysis", "zoo.inspection:attention_sinks"),
    202: ("training", "tasks.denoising:Denoising"),
    218: ("tool", "pallas_kernels.neighborhood_attention:speedup"),
}
HEAD = """# The roster: papers, and what of them is here

Written by `python -m docs.papers` from the registries, docs/weights.md and `benchmarks/results`; not edited by hand.
What a paper is owed is in `docs/papers.tsv`: a mixer, an architecture, a kernel, a claim that is checked, and so on,
each with the name it must have where one is named. It is found where something registered says that it implements the
paper: a kernel is an implementation written for an accelerator, and what is owed over devices is a form that the
checks compare with one device. "There" is all of it, "partly" some of it or something beside it, "not yet" nothing.
That a part is found does not say that it has every option of the paper: its docstring does.

Forms of a mixer: "whole" a sequence at once, "chunk" and "step" piece by piece with a state, equal to the whole in
the checks of every mixer, "packed" with documents of a row apart, "devices" with the sequence split over them. Under
"compared with" is what docs/weights.md lists: "live" runs the reference, "recorded" has its numbers; and on which GPU
calls of the paper's op ran, and how many were right. Where there is none, the checks compare the forms with each
other and ops with their equations. A claim is a measured one about the paper, with the verdict of
[results.md](results.md).
"""


@dataclasses.dataclass(frozen=True)
class Paper:
    """A row of the roster.

    Attributes:
      row: its number.
      tier: in which order it comes, 1 first.
      name, title: of the paper.
      owed: (kind, name), of which a name is empty where any will do.
      what: it is.
    """

    row: int
    tier: str
    name: str
    title: str
    owed: tuple[tuple[str, str], ...]
    what: str


@dataclasses.dataclass(frozen=True)
class Part:
    """Something of the zoo that implements a paper.

    Attributes:
      kind: as in what is owed.
      name: by which it is registered.
      module: where it is written.
      note: what is known of it: the forms of a mixer, the verdict of a claim.
    """

    kind: str
    name: str
    module: str
    note: str = ""


def roster() -> list[Paper]:
    """All papers, in the order of their rows."""

    def owed(text: str) -> tuple[tuple[str, str], ...]:
        return tuple(
            (kind, name) for kind, _, name in (item.partition(" ") for item in text.split(", ") if item != "-")
        )

    with ROSTER.open(newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [Paper(int(r["row"]), r["tier"], r["name"], r["title"], owed(r["owed"]), r["what"]) for r in rows]


def forms(name: str) -> str:
    """The forms in which a mixer mixes."""
    cls = layers.mixer_class(name)
    have = {
        "chunk": cls.supports_causal,
        "step": cls.supports_causal,
        "packed": documents(name).startswith("apart"),
        "devices": _split(name),
    }
    return ", ".join(["whole", *(form for form, has in have.items() if has)])


def _split(name: str) -> bool:
    return any(mixer == name for mixer, _, _ in SPLIT.values())


def parts() -> Iterator[tuple[int, Part]]:
    """(row, part) for all that names a paper."""
    for name in layers.list_mixers():
        cls = layers.mixer_class(name)
        for row in cls.paper:
            yield row, Part("mixer", name, cls.__module__, forms(name))
            if _split(name):
                yield row, Part("devices", name, cls.__module__)
    for name in layers.list_reductions():
        reduction = layers.reduction_class(name)
        yield from ((row, Part("reduction", name, reduction.__module__)) for row in reduction.paper)
    for family, rows in _families():
        yield from ((row, Part("architecture", family, module_of(family).__name__)) for row in rows)
    for op in dispatch.OPS.values():
        for found in op.implementations:
            kind = "kernel" if found.platforms else "devices" if found.considered is sequence.is_split else "op"
            yield from (
                (row, Part(kind, f"{op.name}: {found.name}", f"pallas_kernels.{op.name}")) for row in found.paper
            )
    for name in tasks.list_tasks():
        task = tasks.lookup(name)
        yield from ((row, Part("task", name, task.__module__)) for row in getattr(task, "paper", ()))
    for row, (kind, place) in FUNCTIONS.items():
        module, _, name = place.partition(":")
        if not hasattr(importlib.import_module(module), name):
            raise ValueError(f"docs.papers.FUNCTIONS: {module} has no {name}, which row {row} names")
        yield row, Part(kind, name, module)
    for report in merged([json.loads(path.read_text()) for path in sorted(CLAIMS.glob("*.json"))]):
        module = f"benchmarks.claims.{report['name']}"
        claimed = getattr(importlib.import_module(module), "PAPER", ())
        for row in claimed:
            judged = report["holds"] is not None and isinstance(claimed, Mapping)
            holds = claimed[row](report["rows"]) if judged else report["holds"]
            yield row, Part("claim", report["name"], module, VERDICTS[holds])


def _families() -> list[tuple[str, tuple[int, ...]]]:
    found: dict[str, dict[int, None]] = {}
    for name in zoo.list_models():
        found.setdefault(variant(name).family, {}).update(dict.fromkeys(variant(name).paper))
    return [(family, tuple(rows)) for family, rows in sorted(found.items())]


@functools.cache
def comparisons() -> dict[int, list[str]]:
    """By row of the roster, the references that docs/weights.md compares it with."""
    found: dict[int, dict[str, None]] = {}
    for what, reference, kind in re.findall(
        r"^\| (.+?) \| (.+?) \| (live|recorded) \|", WEIGHTS.read_text(), re.MULTILINE
    ):
        name, _, part = what.partition(" ")
        if part == "(layer)":
            rows = set(layers.mixer_class(name).paper)
        elif part.startswith("(op"):
            rows = {row for implementation in dispatch.OPS[name].implementations for row in implementation.paper}
        else:
            # Some stand there for all of one size, as longvit_small for longvit_small_patch32_1024.
            models = [name] if name in zoo.list_models() else zoo.list_models(f"{name}_*")
            rows = {row for model in models for row in variant(model).paper}
        for row in rows:
            found.setdefault(row, {})[f"{kind}: {re.split(r', | [(]', reference)[0]}"] = None
    return {row: list(references) for row, references in found.items()}


@functools.cache
def on_gpu(op: str) -> str:
    """How many of an op's calls its kernels computed right on GPUs; empty where none ran."""
    lines = []
    for folder in GPU_RESULTS:
        if (path := folder / "correctness.json").exists():
            right = [
                row["right"]
                for row in json.loads(path.read_text())["correctness"]
                if row["op"] == op and row.get("right") is not None
            ]
            lines += [f"{folder.name.upper()}: {sum(right)} of {len(right)} calls of `{op}` right"] if right else []
    return "<br>".join(lines)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A paper, the parts found of it, and what is missing of what it is owed."""

    paper: Paper
    parts: tuple[Part, ...]

    @property
    def missing(self) -> tuple[tuple[str, str], ...]:
        """(kind, name) of what is owed and not found."""
        return tuple(
            (kind, name)
            for kind, name in self.paper.owed
            if not any(p.kind == kind and name in ("", p.name) for p in self.parts)
        )

    @property
    def state(self) -> str:
        """ "there", "partly", "not yet", or "nothing to build"."""
        if not self.paper.owed:
            return "nothing to build"
        return "there" if not self.missing else "partly" if self.parts else "not yet"


def entries() -> list[Entry]:
    """All papers with what is found of them.

    Raises:
      ValueError: something says that it implements a row which is not in the roster, or which is owed nothing.
    """
    found: dict[int, list[Part]] = {}
    for row, part in parts():
        found.setdefault(row, []).append(part)
    papers = roster()
    if stray := sorted(set(found) - {paper.row for paper in papers if paper.owed}):
        raise ValueError(
            f"{found[stray[0]][0].module} names row {stray[0]} as its paper: docs/papers.tsv has no such row, or owes "
            f"it nothing"
        )
    return [Entry(paper, tuple(found.get(paper.row, ()))) for paper in papers]


def _listed(items: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{kind} `{name}`" if name else kind for kind, name in items)


def _places(entry: Entry) -> str:
    """Where the parts live, those of one module and kind together."""
    together: dict[tuple[str, str], list[str]] = {}
    for part in entry.parts:
        if part.kind != "claim" and (part.kind, part.name) not in {("devices", name) for name in layers.list_mixers()}:
            together.setdefault((part.kind, part.module), []).append(f"`{part.name}`")
    return "<br>".join(f"{kind} {', '.join(names)} ({module})" for (kind, module), names in together.items())


def _found(entry: Entry) -> list[str]:
    """The cells of a paper of which something is there."""
    paper = entry.paper
    claims = [f"`{part.name}`: {part.note}" for part in entry.parts if part.kind == "claim"]
    mixed = [f"`{part.name}`: {part.note}" for part in entry.parts if part.kind == "mixer"]
    kernels = dict.fromkeys(part.name.partition(":")[0] for part in entry.parts if part.kind == "kernel")
    checked = "<br>".join([*comparisons().get(paper.row, []), *filter(None, map(on_gpu, kernels))])
    return [*_named(paper), _places(entry), "<br>".join(mixed), checked, "<br>".join(claims)]


def _named(paper: Paper) -> list[str]:
    return [str(paper.row), f"**{paper.name}**<br>{paper.title}", _listed(paper.owed)]


def page() -> str:
    """All of the page."""
    states: dict[str, list[Entry]] = {"there": [], "partly": [], "not yet": [], "nothing to build": []}
    for entry in entries():
        states[entry.state].append(entry)
    counts = ", ".join(f"{len(found)} {state}" for state, found in states.items())
    head = ["row", "paper", "owed", "where it lives", "forms", "compared with", "claim"]
    partly = [[*_found(entry)[:3], f"**{_listed(entry.missing)}**", *_found(entry)[3:]] for entry in states["partly"]]
    later = [[*_named(entry.paper), entry.paper.tier, entry.paper.what] for entry in states["not yet"]]
    nothing = [
        [str(entry.paper.row), f"**{entry.paper.name}**<br>{entry.paper.title}", entry.paper.what]
        for entry in states["nothing to build"]
    ]
    return "\n".join(
        [
            HEAD,
            f"**Of {sum(map(len, states.values()))} papers: {counts}.** {_by_tier(states)}\n",
            f"## There\n\n{table(head, [_found(entry) for entry in states['there']])}",
            f"## Partly\n\n{table([*head[:3], 'missing', *head[3:]], partly)}",
            f"## Not yet\n\n{table(['row', 'paper', 'owed', 'tier', 'what it is'], later)}",
            f"## Nothing to build\n\n{table(['row', 'paper', 'why'], nothing)}",
        ]
    )


def _by_tier(states: dict[str, list[Entry]]) -> str:
    """What is there of each tier."""
    tiers = sorted({entry.paper.tier for found in states.values() for entry in found if entry.paper.owed})
    there = {
        tier: [sum(entry.paper.tier == tier for entry in states[state]) for state in ("there", "partly", "not yet")]
        for tier in tiers
    }
    return (
        "; ".join(
            f"tier {tier}: {done} there and {some} partly of {done + some + none}"
            for tier, (done, some, none) in there.items()
        )
        + "."
    )


if __name__ == "__main__":
    PAGE.write_text(page())
