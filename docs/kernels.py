"""The page of compiled kernels, from benchmarks/results/compiled/kernels.json: ``python -m docs.kernels`` writes docs/kernels.md."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.kernels import RESULTS
from docs.catalogue import table
from docs.results import HOME

PAGE = HOME / "docs" / "kernels.md"
GPU_RESULTS = (HOME / "benchmarks" / "results" / "h200", HOME / "benchmarks" / "results" / "h100")
DEVICES = {"h100": "H100", "v5e": "TPU v5e", "v6e": "TPU v6e"}
HEAD = """# Kernels, compiled

Written by `python -m docs.kernels` from `benchmarks/results/compiled/kernels.json`, which `python -m benchmarks.kernels` writes; not
edited by hand. Outputs and all gradients of every op, at the shapes that its `cases.py` names, in bfloat16, were compiled by the
devices' own compilers, with none of the devices present: so there is no time in these tables. Operations and bytes are those that the
kernels declare from their tiling (`pl.CostEstimate`), forward and backward together. Registers are a thread's where it starts; in
kernels of three warpgroups the two that multiply then take 240, and the one that copies keeps 24. Where a row names no kernel, XLA's
form serves the shape, for the reason told.
"""
NO_GPU = """
**No GPU was to be had when these kernels were written.** `python -m benchmarks.gpu` checks each of them against float64 on an H100 or
H200 and times it beside its peers; until it has run there is no figure of speed here, and none should be inferred.
"""


def _kernel(found: dict[str, Any]) -> str:
    """A kernel and what it takes."""
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
    return f"## {DEVICES[device]}\n\n{table(['op', 'shape', 'JAX', 'kernels', 'GFLOP', 'million exponentials', 'MB'], lines)}"


def page() -> str:
    """All of the page."""
    rows = json.loads(RESULTS.read_text())
    told = "" if any(folder.exists() for folder in GPU_RESULTS) else NO_GPU
    return "\n".join([HEAD + told, *(section(device, [row for row in rows if row["device"] == device]) for device in DEVICES)])


if __name__ == "__main__":
    PAGE.write_text(page())
