"""The parts of docs/speed.md on mixers: recurrences and sparse attention beside PyTorch, and growth with length."""

from __future__ import annotations

from typing import Any

from docs.catalogue import table

Report = dict[str, Any]


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def mixers(report: Report) -> str:
    """Recurrences compared with flash-linear-attention's PyTorch code, and their growth with length."""
    rows, others = [], []
    for name, row in report["rows"].items():
        if "asked" not in row:
            others.extend([name, what, _compact(found)] for what, found in row.items() if what not in _MACHINE)
            continue
        for what in ("forward", "gradient"):
            for peer, ratio in row[what]["times"].items():
                times, asked = row[what]["ms"], row["asked"][peer]
                cells = [number(times["ours"]), number(times[peer]), number(ratio), number(asked)]
                missed = "missed" if asked is not None and ratio < asked else ""
                rows.append([name, what, peer, *cells, missed, number(row["memory_exponent"])])
    text = (
        "`python -m benchmarks.mixers_speed`: the op alone on 1 x 2048 tokens x 8 heads x 64, compared with the "
        "PyTorch code of fla-core 0.6.0 (of the mLSTM, with that of transformers),"
    )
    more = (
        " token by token or in chunks, and with our own reference, token by token in JAX. Of forgetting attention, the "
    )
    more += "peer is a plain attention, and nothing is asked."
    more += " The last column is the exponent with which the gradient's memory grows, from 2k to 32k tokens."
    head = ["recurrence", "", "peer", "ours, ms", "peer, ms", "times", "target", "", "memory"]
    parts = [f"## The recurrences compared with PyTorch code\n\n{text}{more}\n\n{table(head, rows)}"]
    if others:
        parts.append(table(["what", "", "measured"], others))
    return "\n".join(parts)


_MACHINE = ("versions", "cores", "load_average_at_end")


def _compact(found: Any) -> str:
    if not isinstance(found, dict):
        return number(found)
    return "; ".join(f"{key}: {_compact(value)}" for key, value in found.items())


def sparse(report: Report) -> str:
    """Sparse encoders compared with transformers."""
    rows = []
    for name, row in report["rows"].items():
        for what, found in row.items():
            if what in _MACHINE:
                continue
            times, asked = found["ms"], found["asked"]
            cells = [number(times["ours"]), number(times["transformers"]), number(found["times"])]
            rows.append([name, what, *cells, "missed" if asked is not None and found["times"] < asked else ""])
    text = (
        "`python -m benchmarks.sparse`: two blocks of the published size, the same weights. The target is 2 times the "
        "speed of transformers at 4,096 tokens. With texts of 512 tokens BigBird of transformers attends to all."
    )
    head = ["model", "", "ours, ms", "transformers, ms", "times", ""]
    return f"## Sparse encoders\n\n{text}\n\n{table(head, rows)}"


def growth(report: Report) -> str:
    """How time and memory of one layer grow with length."""
    parts = [
        "## Growth with length\n\n`python -m benchmarks.growth`: one layer of 256 features and four heads with its "
        "default options; exponents are slopes of the logarithms.\n"
    ]
    about = {
        "sparse": "Sparse attention: the gradient, milliseconds and temporary MiB. Exponents should be at most 1.1.",
        "constant": "Mixers whose state has one size at every length: the forward pass, microseconds a token. The "
        "exponent of time should be between 0.9 and 1.1.",
    }
    for kind, text in about.items():
        rows = {name: row for name, row in sorted(report["rows"].items()) if row["kind"] == kind}
        if not rows:
            continue
        lengths = next(row["lengths"] for row in rows.values() if "lengths" in row)
        head = ["mixer", *(f"{n:,} tokens" for n in lengths), "exponent of time"]
        lines = []
        for name, row in rows.items():
            if "fault" in row:
                lines.append([name, row["fault"], *[""] * (len(lengths) + 1 + (kind == "sparse"))])
                continue
            missed, time = "missed" if row["missed"] else "", number(row["time_exponent"])
            if kind == "sparse":
                cells = [f"{number(ms)}, {number(mib)}" for ms, mib in zip(row["ms"], row["mib"], strict=True)]
                lines.append([name, *cells, time, number(row["memory_exponent"]), missed])
            else:
                cells = [number(1e3 * ms / n) for ms, n in zip(row["ms"], lengths, strict=True)]
                lines.append([name, *cells, time, missed])
        head += ["of memory", ""] if kind == "sparse" else [""]
        asked = [name for name, of in report.get("asked_for", {}).items() if of == kind]
        missing = len(set(asked) - set(rows))
        parts.append(text + (f" {missing} of {len(asked)} are not measured." if missing else "") + "\n")
        parts.append(table(head, lines))
    return "\n".join(parts)
