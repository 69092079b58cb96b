"""One LongNet layer from 8 thousand to a million tokens on this device: runtime and memory against length, compared
with dense attention.

    python -m benchmarks.longnet_scaling [--lengths=8192,...] [--limit=60] [--output=DIR]

writes DIR/longnet_scaling.json (default benchmarks/results/<platform>): seconds of a forward pass (the least of several
runs, causal, one row) and the temporary memory that the compiler reserves, with their slopes on log-log axes.
Linear cost is a slope of 1. A form is measured while a run is expected to take no more than ``--limit`` seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from layers import Mixer

FEATURES, HEADS = 64, 4
FORMS: dict[str, dict[str, Any]] = {
    "longnet": {
        "name": "dilated_attention",
        "segments": (512, 1024, 2048, 4096),
        "rates": (1, 2, 4, 8),
        "rotary": 10000.0,
    },
    "dense": {"name": "attention", "rotary": 10000.0},
}
LENGTHS = tuple(2**n for n in range(13, 21))
REPEATS = 3


def measure(mixer: Mixer, length: int) -> dict[str, float]:
    """Seconds and temporary bytes of a forward pass of one row."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    graph, state = nnx.split(mixer)
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, length, FEATURES), np.float32))
    compiled = run.lower(state, x).compile()
    times = []
    for _ in range(REPEATS + 1):  # the first one pays for touching the memory
        since = time.perf_counter()
        jax.block_until_ready(compiled(state, x))
        times.append(time.perf_counter() - since)
    return {
        "length": length,
        "seconds": round(min(times[1:]), 5),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def slope(rows: list[dict[str, float]], figure: str) -> float | None:
    """The growth exponent of a figure with length, by least squares on logarithms; None for fewer than two rows."""
    if len(rows) < 2:
        return None
    return round(
        float(np.polyfit(np.log([row["length"] for row in rows]), np.log([row[figure] for row in rows]), 1)[0]), 3
    )


def scaling(options: dict[str, Any], lengths: tuple[int, ...], limit: float) -> list[dict[str, float]]:
    """Rows of growing length, up to the first that is expected to take longer than ``limit`` seconds."""
    from flax import nnx

    from layers import create_mixer

    mixer = create_mixer(options, FEATURES, causal=True, num_heads=HEADS, rngs=nnx.Rngs(0))
    rows: list[dict[str, float]] = []
    for length in lengths:
        if rows and rows[-1]["seconds"] * (length / rows[-1]["length"]) ** mixer.complexity > limit:
            break
        rows.append(measure(mixer, length))
        print(options["name"], json.dumps(rows[-1]), flush=True)
    return rows


def run(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.longnet_scaling", description=__doc__)
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--limit", type=float, default=60.0, help="seconds that a run may be expected to take")
    parser.add_argument("--output", type=Path, help="folder; default benchmarks/results/<platform>")
    given = parser.parse_args(arguments)
    import jax

    folder = given.output or Path(__file__).parent / "results" / jax.default_backend()
    lengths = tuple(sorted(int(n) for n in given.lengths.split(",")))
    report: dict[str, Any] = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "jax": jax.__version__}
    report |= {
        "features": FEATURES,
        "heads": HEADS,
        "segments": FORMS["longnet"]["segments"],
        "rates": FORMS["longnet"]["rates"],
    }
    for form, options in FORMS.items():
        rows = scaling(options, lengths, given.limit)
        report[form] = {
            "rows": rows,
            "slope_of_seconds": slope(rows, "seconds"),
            "slope_of_memory": slope(rows, "temporary_bytes"),
        }
        print(
            f"{form}: slope of seconds {report[form]['slope_of_seconds']}, of memory {report[form]['slope_of_memory']}"
        )
    report["load_average_at_end"] = os.getloadavg()[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "longnet_scaling.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run()
