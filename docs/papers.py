"""The catalogue of papers: what each requires of the zoo, and which of that is implemented. ``python -m docs.papers``
writes docs/papers.md.

The requirements are in docs/papers.tsv, one row for each paper; nothing there says what is done. What is done is read
from the registries and the results: everything registered names the rows that it implements (``paper``), and a row is
complete ("there") once everything required is found.
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
# Parts of papers that no registry lists, by row: the kind, and where they are defined.
FUNCTIONS: dict[int, tuple[str, ...]] = {
    17: ("block", "layers.subspace_attention:SubspaceAttention"),
    20: ("inference", "layers.attention.landmark:LandmarkAttention"),
    25: ("block", "layers.efficient_local_attention:EfficientLocalAttention"),
    29: ("block", "layers.token_aware_pooling:TokenAwarePooling", "layers.attention.diverse:attention_diversity"),
    30: ("analysis", "zoo.dynamics:dynamics"),
    41: ("block", "layers.efficient_channel_attention:EfficientChannelAttention"),
    48: ("analysis", *(f"zoo.extreme_tokens:{name}" for name in ("dormancy", "value_drains", "residual_peaks"))),
    137: ("block", "layers.altup:AltUp", "layers.altup:SequenceAltUp"),
    156: ("analysis", "zoo.vision.vit:outlier_norms"),
    165: ("training", "layers.state_space.initialization:MIMETIC_A_LOG"),
    167: ("block", "layers.randomized_positions:RandomizedPlaces"),
    202: ("training", "tasks.denoising:Denoising"),
    218: ("tool", "pallas_kernels.neighborhood_attention:speedup"),
    239: ("analysis", "zoo.inspection:attention_sinks"),
}
LABELS = {
    "there": "complete",
    "partly": "partial",
    "not yet": "not yet implemented",
    "nothing to build": "with nothing to build",
}
HEAD = """# The roster: papers, and what of them is implemented

Written by `python -m docs.papers` from the registries, docs/weights.md and `benchmarks/results`; not edited by hand.
`docs/papers.tsv` lists what is required for each paper: a mixer, an architecture, a kernel, a claim that is checked,
and so on, with the name it must have where one is given. A part counts as found where something registered says that it
implements the paper. A kernel is an implementation written for an accelerator; "devices" is an implementation over
several devices that the tests compare with one device. Papers are complete, partial (some required parts are found, or
something related), or not yet implemented. That a part is found does not mean that it has every option of the paper:
its docstring says which it has.

Forms of a mixer: "whole" is a sequence at once; "chunk" and "step" are piece by piece with a state, tested to equal
"whole" for every mixer; "packed" is with the documents of a row kept apart; "devices" is with the sequence split over
devices. "Compared with" lists the references of docs/weights.md ("live" runs the reference, "recorded" has its
numbers), and the GPUs on which calls of the paper's op ran, with the number that were right. Where it is empty, the
tests compare the forms with each other and ops with their equations. A claim is a measured one about the paper, with
the verdict of [results.md](results.md).
"""


@dataclasses.dataclass(frozen=True)
class Paper:
    """A row of the roster.

    Attributes:
      row: its number.
      tier: its priority, 1 first.
      name, title: of the paper.
      owed: the required parts, (kind, name) each; the name is empty where any will do.
      what: a description of the paper.
    """

    row: int
    tier: str
    name: str
    title: str
    owed: tuple[tuple[str, str], ...]
    what: str


@dataclasses.dataclass(frozen=True)
class Part:
    """Something in the zoo that implements a paper.

    Attributes:
      kind: as in ``Paper.owed``.
      name: under which it is registered.
      module: where it is defined.
      note: the forms of a mixer, or the verdict of a claim.
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
    """The forms in which a mixer can be run."""
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
    """(row, part) for everything that names a paper.

    Raises:
      ValueError: FUNCTIONS names something that does not exist.
    """
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
    for row, (kind, *places) in FUNCTIONS.items():
        for place in places:
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
    """The references that docs/weights.md compares with, by row of the roster."""
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
            # Some names there stand for all models of one size, such as longvit_small for longvit_small_patch32_1024.
            models = [name] if name in zoo.list_models() else zoo.list_models(f"{name}_*")
            rows = {row for model in models for row in variant(model).paper}
        for row in rows:
            found.setdefault(row, {})[f"{kind}: {re.split(r', | [(]', reference)[0]}"] = None
    return {row: list(references) for row, references in found.items()}


@functools.cache
def on_gpu(op: str) -> str:
    """How many calls of an op its kernels computed correctly on GPUs; empty where none ran."""
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
    """A paper, the parts found for it, and which required parts are missing."""

    paper: Paper
    parts: tuple[Part, ...]

    @property
    def missing(self) -> tuple[tuple[str, str], ...]:
        """(kind, name) of each required part that was not found."""
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
    """All papers with the parts found for them.

    Raises:
      ValueError: something names a row as its paper that is not in the roster, or for which nothing is required.
    """
    found: dict[int, list[Part]] = {}
    for row, part in parts():
        found.setdefault(row, []).append(part)
    papers = roster()
    if stray := sorted(set(found) - {paper.row for paper in papers if paper.owed}):
        raise ValueError(
            f"{found[stray[0]][0].module} names row {stray[0]} as its paper: docs/papers.tsv has no such row, or "
            f"requires nothing for it"
        )
    return [Entry(paper, tuple(found.get(paper.row, ()))) for paper in papers]


def _listed(items: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{kind} `{name}`" if name else kind for kind, name in items)


def _places(entry: Entry) -> str:
    """Where the parts are defined, those of one module and kind together."""
    together: dict[tuple[str, str], list[str]] = {}
    for part in entry.parts:
        if part.kind != "claim" and (part.kind, part.name) not in {("devices", name) for name in layers.list_mixers()}:
            together.setdefault((part.kind, part.module), []).append(f"`{part.name}`")
    return "<br>".join(f"{kind} {', '.join(names)} ({module})" for (kind, module), names in together.items())


def _found(entry: Entry) -> list[str]:
    """The cells of a paper of which something is implemented."""
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
    counts = ", ".join(f"{len(found)} {LABELS[state]}" for state, found in states.items())
    head = ["row", "paper", "required", "where it is", "forms", "compared with", "claim"]
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
            f"## Complete\n\n{table(head, [_found(entry) for entry in states['there']])}",
            f"## Partial\n\n{table([*head[:3], 'missing', *head[3:]], partly)}",
            f"## Not yet implemented\n\n{table(['row', 'paper', 'required', 'tier', 'what it is'], later)}",
            f"## Nothing to build\n\n{table(['row', 'paper', 'why'], nothing)}",
        ]
    )


def _by_tier(states: dict[str, list[Entry]]) -> str:
    """How much of each tier is implemented."""
    tiers = sorted({entry.paper.tier for found in states.values() for entry in found if entry.paper.owed})
    there = {
        tier: [sum(entry.paper.tier == tier for entry in states[state]) for state in ("there", "partly", "not yet")]
        for tier in tiers
    }
    return (
        "; ".join(
            f"tier {tier}: {done} complete and {some} partial of {done + some + none}"
            for tier, (done, some, none) in there.items()
        )
        + "."
    )


if __name__ == "__main__":
    PAGE.write_text(page())
