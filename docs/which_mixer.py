"""The page that helps to choose a mixer, and its picture: ``python -m docs.which_mixer`` writes docs/which_mixer.md and
docs/pictures/operations.svg.

All of it, including the list at its top, is generated from the counts of ``python -m benchmarks.counted``, the
declarations of the registry, and the verdicts of the claims.
"""

from __future__ import annotations

import functools
import json
import re
import statistics
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import layers
from benchmarks.counted import CLAIMS, RESULTS
from benchmarks.curves import against_length
from docs.catalogue import documents, table
from docs.papers import VERDICTS as WORDS
from docs.results import HOME, asked, merged
from layers.mixer import accepted
from pallas_kernels import dispatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = HOME / "docs" / "which_mixer.md"
PICTURE = HOME / "docs" / "pictures" / "operations.svg"
HEAD = """# Which mixer?

Written by `python -m docs.which_mixer` from `benchmarks/results/counted/mixers.json`, the registry and the claims; not
edited by hand. Every figure is for one layer of {features} features and {heads} heads with its default options, causal
where possible, and one sequence in float32. Operations are counted in the program for a CPU (arithmetic, comparisons
and data movement of a forward pass), not timed: [speed.md](speed.md) and [kernels.md](kernels.md) have times. A mixer
of maps is given a square map with the same number of tokens.
"""
Report = dict[str, Any]
Row = dict[str, Any]


def load() -> Report:
    """The report of counts that ``benchmarks.counted`` wrote."""
    report: Report = json.loads(RESULTS.read_text())
    return report


def wraps(name: str) -> bool:
    """Whether a mixer is made of other mixers: its figures are then those with attention inside it."""
    return bool(accepted(layers.mixer_class(name))[0] & {"inner", "branches"})


def on_map(name: str) -> bool:
    """Whether a mixer takes maps only."""
    return "sequence" not in layers.mixer_class(name).layouts


def constant(row: Row) -> bool:
    """Whether the state is as large for the longest sequence as for the shortest."""
    return bool(row["state_bytes"]) and row["state_bytes"][0] == row["state_bytes"][-1]


def size(count: int) -> str:
    """A number of bytes in readable units."""
    for unit, least in (("MiB", 2**20), ("KiB", 2**10)):
        if count >= least:
            return f"{count / least:.3g} {unit}" if count < 1000 * least else f"{count / least:,.0f} {unit}"
    return f"{count} B"


def _billions(count: float) -> str:
    return f"{count / 1e9:.3g}"


def _state(row: Row) -> str:
    if not row["state_bytes"]:
        return ""
    first, last = row["state_bytes"][0], row["state_bytes"][-1]
    return size(first) if first == last else f"{size(first)} to {size(last)}"


def _kernels(row: Row) -> str:
    """Devices for which an op of the mixer has a kernel."""
    found = {
        platform for op in row["ops"] for one in dispatch.OPS[op].implementations for platform in one.platforms or ()
    }
    return ", ".join(sorted(platform.upper() for platform in found))


def slug(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@functools.cache
def claims() -> dict[str, tuple[str, bool | None]]:
    """By claim, its title and verdict."""
    reports = merged([json.loads(path.read_text()) for path in sorted(CLAIMS.glob("*.json"))])
    return {report["name"]: (report["claim"].partition(". ")[0], report["holds"]) for report in reports}


def _names(rows: dict[str, Row], figure: Callable[[Row], float], show: Callable[[Row], str]) -> str:
    """Mixers in ascending order of a figure, with the figure; mixers with the same shown figure are grouped."""
    together: dict[str, list[str]] = {}
    for name in sorted(rows, key=lambda name: (figure(rows[name]), name)):
        together.setdefault(show(rows[name]), []).append(f"`{name}`")
    return "; ".join(f"{', '.join(names)} ({shown})" for shown, names in together.items())


def decisions(report: Report) -> list[str]:
    """The entries of the list at the top, each derived from the figures of the report."""
    lengths = report["lengths"]
    own = {name: row for name, row in report["mixers"].items() if not wraps(name)}
    maps = {name: row for name, row in own.items() if on_map(name)}
    sequences = {name: row for name, row in own.items() if not on_map(name)}
    causal = {name: row for name, row in sequences.items() if row["state_bytes"]}
    both = {name: row for name, row in sequences.items() if layers.mixer_class(name).supports_bidirectional}
    fixed = {name: row for name, row in causal.items() if constant(row)}
    growing = {name: row for name, row in causal.items() if not constant(row)}
    linear = [row["operations"] for row in causal.values() if row["exponent"] == 1]
    attention = causal["attention"]["operations"]
    ratios = [attention[i] / statistics.median(row[i] for row in linear) for i in range(len(lengths))]
    middle = lengths.index(4096)

    def at_middle(row: Row) -> float:
        return float(row["operations"][middle])

    def described(row: Row) -> str:
        return _billions(at_middle(row))

    def all_of(names: Iterable[str]) -> str:
        return ", ".join(f"`{name}`" for name in names)

    steps = ", ".join(f"{ratio:.2g} at {length:,}" for ratio, length in zip(ratios, lengths, strict=True))
    chosen = [name for name in own if layers.mixer_class(name).streaming == "selection"]
    refused = [name for name in sequences if not documents(name).startswith("apart")]
    bare = {name: row for name, row in own.items() if not _kernels(row)}
    return [
        f"**Does length matter?** Compared with the median of the {len(linear)} causal mixers of exponent 1, "
        f"`attention` needs this multiple of their operations: {steps} tokens. Up to the length where the "
        "multiple is about 1, operations are no reason to replace it.",
        f"**Images and other maps.** In order of 10^9 operations at 64 x 64 tokens, the fewest first: "
        f"{_names(maps, at_middle, described)}."
        f" Of these the exponent is above 1 for {all_of({n: r for n, r in maps.items() if r['exponent'] > 1})}. "
        f"`row_major`, `scan_2d`, `windowed` and `grid` apply any sequence mixer to a map.",
        f"**Whole sequences, bidirectional.** With exponent 1: "
        f"{all_of({n: r for n, r in both.items() if r['exponent'] == 1})};"
        f" above 1: {all_of({n: r for n, r in both.items() if r['exponent'] > 1})}. `bidirectional` makes any causal "
        f"mixer bidirectional.",
        "**Token by token, in constant memory.** The state of one sequence is the same at 256 and at 16,384 tokens:"
        f" {_names(fixed, lambda row: row['state_bytes'][0], _state)}.",
        f"**Token by token, where memory may grow.** State at 256 to 16,384 tokens: "
        f"{_names(growing, lambda row: row['state_bytes'][-1], _state)}.",
        f"**Recall and copying** were measured with small models: {_measured(RECALL)}; the criteria are below.",
        f"**Lengths far beyond training** were measured too: {_measured(LENGTH)}.",
        f"**Packed documents** in one row are kept apart by all sequence mixers except {all_of(refused)}.",
        f"**Strict causality.** With the default options {all_of(chosen)} selects what a token attends to with "
        "knowledge of later tokens; all other causal mixers give the same outputs whole and piece by piece.",
        f"**On a GPU or TPU.** These have no op with a kernel of its own and are compiled by XLA: {all_of(bare)}.",
    ]


RECALL = ("associative_recall", "copying", "selective_copying", "state_tracking")
LENGTH = ("induction_heads", "needle", "passkey")


def _measured(names: tuple[str, ...]) -> str:
    """Claims with their verdicts."""
    return ", ".join(f"[{name}] {WORDS[claims()[name][1]]}" for name in names)


def measured(report: Report) -> str:
    """The table of claims: the criterion, the verdict, and the mixers compared."""
    head = ["claim", "what it says", "criterion", "verdict", "mixers"]
    lines = []
    for name, (title, holds) in claims().items():
        compared = ", ".join(f"`{mixer}`" for mixer in report["claims"][name])
        lines.append([f"[{name}]", title, asked(name), WORDS[holds], compared])
    return table(head, lines)


def mixers(report: Report) -> str:
    """The table with one row for each mixer."""
    head = ["mixer", "takes", "direction", "exponent", "parameters", *(f"{length:,}" for length in report["lengths"])]
    head += ["state of a sequence", "packed documents", "kernels", "in the claims"]
    lines = []
    for name, row in report["mixers"].items():
        cls = layers.mixer_class(name)
        sight = " and ".join(
            word
            for word, has in (("causal", cls.supports_causal), ("bidirectional", cls.supports_bidirectional))
            if has
        )
        streaming = "" if cls.streaming == "exact" else f" ({cls.streaming})"
        shown = f"`{name}`{' of `attention`' if wraps(name) else ''}"
        figures = [f"{row['exponent']:g}", f"{row['parameters']:,}", *map(_billions, row["operations"])]
        compared = [f"[{claim}]" for claim, names in report["claims"].items() if name in names]
        takes = ", ".join("map" if layout == "grid" else layout for layout in cls.layouts)
        lines.append(
            [
                shown,
                takes,
                sight + streaming,
                *figures,
                _state(row),
                documents(name),
                _kernels(row),
                ", ".join(compared),
            ]
        )
    return table(head, lines)


def page() -> str:
    """All of the page."""
    report = load()
    listed = "\n".join(f"- {line}" for line in decisions(report))
    return "\n".join(
        [
            HEAD.format(**report),
            f"## In short\n\n{listed}\n",
            f"## Operations against length\n\n![Operations of every mixer against "
            f"length]({PICTURE.relative_to(PAGE.parent)})\n",
            "## Every mixer\n\nThe columns of lengths are 10^9 operations at that number of tokens. The exponent is "
            "the one that the mixer declares for the growth of its cost with length. The state is that of one "
            "sequence, with room for 256 tokens, and for 16,384 where that is larger. "
            '"of `attention`" marks mixers that wrap others, here with attention inside; "image" is a map preceded by '
            "a class token or registers. Kernels are those that the mixer's ops have; the op decides whether a kernel "
            "serves a call.\n",
            mixers(report),
            f"## Measured\n\nFigures, sizes and seeds are in [results.md](results.md).\n\n{measured(report)}",
            "".join(f"[{name}]: results.md#{slug(title)}\n" for name, (title, _) in claims().items()),
        ]
    )


def draw(report: Report) -> Figure:
    """Operations against length, one line for each mixer: causal sequence mixers in one panel, the others in the
    second; mixers made of others are left out.
    """
    from matplotlib.figure import Figure

    own = {name: row for name, row in report["mixers"].items() if not wraps(name)}
    back = {name: row for name, row in own.items() if row["state_bytes"]}
    panels = {
        "Causal mixers of sequences": back,
        "Mixers of maps, and mixers that are bidirectional only": {n: r for n, r in own.items() if n not in back},
    }
    figure = Figure(figsize=(13, 9), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        lengths = report["lengths"]
        against_length(axes, {n: list(zip(lengths, r["operations"], strict=True)) for n, r in rows.items()}, lengths)
        axes.set(title=title, xlabel="tokens", ylabel="operations of a forward pass" if rows is back else "")
    figure.suptitle(f"One layer of {report['features']} features, one sequence")
    return figure


def main() -> None:
    """Writes the page and draws the picture."""
    from matplotlib import rc_context

    PAGE.write_text(page())
    PICTURE.parent.mkdir(exist_ok=True)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mixers"}):
        draw(load()).savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
