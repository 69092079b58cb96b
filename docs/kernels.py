"""The page of kernels, from benchmarks/results/compiled/kernels.json and benchmarks/results/<GPU>: ``python -m
docs.kernels`` writes docs/kernels.md.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.kernels import RESULTS
from docs.catalogue import table
from docs.results import HOME
from pallas_kernels.dispatch import OPS

PAGE = HOME / "docs" / "kernels.md"
GPU_RESULTS = (HOME / "benchmarks" / "results" / "h200", HOME / "benchmarks" / "results" / "h100")
DEVICES = {"h100": "H100", "v5e": "TPU v5e", "v6e": "TPU v6e"}
HEAD = """# Kernels: on a GPU, and compiled

Written by `python -m docs.kernels` from the files that `python -m benchmarks.gpu` and `python -m benchmarks.kernels`
write under `benchmarks/results`; not edited by hand. The outputs and all gradients of every op, in bfloat16 and at the
shapes of its `cases.py`, were compiled by the devices' own compilers without the devices, so the tables of compiled
kernels have no times. Operations and bytes are those that the kernels declare from their tiling (`pl.CostEstimate`),
forward and backward together. Registers are per thread at the start of the kernel; in kernels of three warpgroups the
two that multiply then take 240, and the one that copies keeps 24. Where a row names no kernel, XLA's form serves the
shape, for the reason given.
"""
RUN = """
## On a GPU: right?

`python -m benchmarks.gpu correct` compares outputs and all gradients with float64, computed from the inputs as the
kernels receive them (rounded to 16 bits for attention and the recurrences with matrix states). A row is right if no
relative error, max|a - b| / max|b|, is above 2^-6. XLA computes the rows that no kernel serves; wrong rows are listed
with their largest error.
"""
TIMES = """
## On a GPU: how fast?

`python -m benchmarks.gpu time`: milliseconds per call, with calls queued one after another and the contestants taking
turns; the median of five. "gradient" is the outputs and all gradients. The ratio is the best peer's time divided by
ours: above 1, ours is faster. The share of the floor is the time that the least possible work takes at the ceilings
measured in the same run, divided by our time.
"""


def _kernel(found: dict[str, Any]) -> str:
    """A kernel and the resources it uses."""
    parts = []
    if "registers" in found:
        parts += [f"{found['registers']} registers", f"{found['shared_bytes'] / 1024:.0f} KiB shared"]
        parts += [f"{found['spill_bytes']} B spilled"] if found["spill_bytes"] else []
    if "vmem_bytes" in found:
        parts.append(f"{found['vmem_bytes'] / 1024:.0f} KiB VMEM")
    return f"{found['name']}: {', '.join(parts)}" if parts else found["name"]


def section(device: str, rows: list[dict[str, Any]]) -> str:
    """A device's table."""
    lines = []
    for row in rows:
        kernels = "<br>".join(map(_kernel, row.get("kernels", ())))
        refused = "; ".join(f"{name}: {reason}" for name, reason in row.get("refused", {}).items())
        figures = [f"{row[name]:g}" if name in row else "" for name in ("gflop", "exponentials_millions", "mbyte")]
        lines.append([row["op"], row["shape"], row["jax"], kernels or f"XLA ({refused})", *figures])
    return (
        "## "
        f"{DEVICES[device]}\n\n{table(['op', 'shape', 'JAX', 'kernels', 'GFLOP', 'million exponentials', 'MB'], lines)}"
    )


def correctness(report: dict[str, Any]) -> str:
    """What was right, wrong and not served on a device, by op."""
    lines = []
    for op in dict.fromkeys(row["op"] for row in report["correctness"]):
        rows = [row for row in report["correctness"] if row["op"] == op]
        wrong = [
            f"{_label(row)} ({max(row['errors'].values()):.2g})"
            for row in rows
            if row.get("right") is False and "errors" in row
        ]
        failed = [f"{_label(row)}: {row['fault'][:160]}" for row in rows if "fault" in row]
        missed = sum("not_reached" in row for row in rows)
        counts = [
            sum(row.get("right") is True for row in rows),
            len(wrong),
            sum("refused" in row for row in rows),
            missed,
        ]
        lines.append([op, *map(str, counts), ", ".join(wrong), "<br>".join(failed)])
    head = ["op", "right", "wrong", "not served", "not reached", "wrong, largest error", "did not run"]
    return f"{RUN}\n{report['device']}, JAX {report['jax']}.\n\n{table(head, lines)}"


def _label(row: dict[str, Any]) -> str:
    return str(row.get("problem") or row["case"])


def times(reports: list[dict[str, Any]]) -> str:
    """Times compared with the peers, by op."""
    lines = []
    for report in reports:
        op = next(key for key in report if key in OPS)
        for row in report[op]:
            for way in ("forward", "gradient"):
                found = row.get(way, {})
                if "ms" not in found:
                    reason = found.get("fault") or (
                        "the kernel is wrong" if row.get("wrong") else "not reached in the time given"
                    )
                    lines.append([op, row["problem"], way, reason, "", "", ""])
                    continue
                peers = ", ".join(f"{name} {ms:.3g}" for name, ms in found["ms"].items() if name != "ours")
                ratio = f"{found['speed_over_best_peer']:.2f} ({found['best_peer']})"
                lines.append(
                    [
                        op,
                        row["problem"],
                        way,
                        f"{found['ms']['ours']:.3g}",
                        peers,
                        ratio,
                        f"{found['share_of_floor']:.2f}",
                    ]
                )
    versions = ", ".join(f"{name} {version}" for name, version in reports[0]["peers"].items())
    head = ["op", "problem", "", "ours, ms", "peers, ms", "best peer / ours", "share of the floor"]
    return (
        f"{TIMES}\n{reports[0]['device']}, JAX {reports[0]['jax']}; {versions}.\n\n"
        f"{table(head, lines)}{absent(reports)}"
    )


def absent(reports: list[dict[str, Any]]) -> str:
    """Why peers are missing from the row of a problem that they could compute."""
    places: dict[str, list[str]] = {}
    for report in reports:
        op = next(key for key in report if key in OPS)
        for row, way in ((row, way) for row in report[op] for way in ("forward", "gradient")):
            for peer, reason in row.get(way, {}).get("absent", {}).items():
                if not reason.startswith("NotImplementedError"):
                    places.setdefault(f"{peer}: {reason}", []).append(f"{op} {row['problem']} {way}")
    return "".join(f"\nNot in {', '.join(rows)}: {reason}\n" for reason, rows in places.items())


def on_devices() -> list[str]:
    """The sections of each GPU that kernels have run on."""
    sections = []
    for folder in GPU_RESULTS:
        if (folder / "correctness.json").exists():
            sections.append(correctness(json.loads((folder / "correctness.json").read_text())))
        reports = [json.loads((folder / f"{op}.json").read_text()) for op in OPS if (folder / f"{op}.json").exists()]
        sections += [times(reports)] if reports else []
    return sections


def page() -> str:
    """All of the page."""
    rows = json.loads(RESULTS.read_text())
    return "\n".join(
        [
            HEAD,
            *on_devices(),
            *(section(device, [row for row in rows if row["device"] == device]) for device in DEVICES),
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page())
