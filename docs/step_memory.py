"""The page of the memory that a training step needs: ``python -m docs.step_memory`` writes docs/step_memory.md from the
counts of ``python -m benchmarks.step_memory``.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.step_memory import RESULTS, published
from docs.catalogue import table
from docs.results import HOME
from primitives.memory import size
from zoo.registry import variant

PAGE = HOME / "docs" / "step_memory.md"
HEAD = """# Batch sizes that fit

Written by `python -m docs.step_memory` from the counts of `python -m benchmarks.step_memory`; not edited by hand. How
many examples of a training step fit in the memory of one device, for models whose sizes are published: float32, AdamW,
cross entropy, no rematerialization. An example is an image of the model's size, or a text of as many tokens as the
model has positions, 2,048 where it has no limit; an encoder-decoder reads as many on each side.

The figures are estimated from the traced step, as `train.py` does before it compiles. Nothing was run, and ops have the
form that they take on a CPU; kernels on other devices keep less. The actual need may be half or twice as much,
depending on the compiler. "State" is the parameters and both moments of AdamW; "one example" is the need of a step with
one example. Where not even one fits, use `--config.remat=block`, `--config.scan=True`, `--config.dtype=bfloat16`, a
shorter input or several devices (`--config.mesh.fsdp`); for a larger batch than fits use `--config.accumulate`.
"""


def page(report: dict[str, Any]) -> str:
    """The page."""
    counted = {name: row for name, row in report["models"].items() if name in set(published())}
    about = f"{len(counted)} of {len(published())} models are counted; the command goes on with the others."
    parts = [HEAD] + ([about + "\n"] if len(counted) < len(published()) else [])
    if report["compiled"]:
        parts.append(_compiled(report["compiled"]))
    families: dict[str, list[str]] = {}
    for name in sorted(counted):
        families.setdefault(variant(name).family, []).append(name)
    head = ["model", "an example", "state", "one example", *(f"{limit} GiB" for limit in report["gib"])]
    for family, names in sorted(families.items()):
        rows = [[f"`{name}`", *_cells(counted[name])] for name in names]
        parts.append(f"## {family}\n\n{table(head, rows)}")
    return "\n".join(parts)


def _cells(row: dict[str, Any]) -> list[str]:
    shapes = [" x ".join(f"{n:,}" for n in shape) for shape in row["example"]]
    one = row.get("traced_bytes", {}).get("1")
    least = size(one) if one else f"over {size(row['state_and_gradients_bytes'])}"
    return [" + ".join(shapes), size(row["state_bytes"]), least, *(f"{count:,}" for count in row["fits"])]


def _compiled(rows: dict[str, dict[str, Any]]) -> str:
    cells = [
        [
            f"`{name}`", f"{row['examples']:,}", size(row["estimated_bytes"]), size(row["compiled_bytes"]),
            f"{row['ratio']:.2f}", f"{row['device']}, jax {row['jax']}",
        ]
        for name, row in rows.items()
    ]  # fmt: skip
    head = ["model", "examples", "estimate", "compiled", "estimate over compiled", "compiled for"]
    text = "As many examples as fit 8 GiB, beside what the compiler says:"
    return f"## Compiled\n\n{text}\n\n{table(head, cells)}"


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(RESULTS.read_text())))
