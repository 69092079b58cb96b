"""How time and memory of one layer grow with length, on this device.

``python -m benchmarks.growth [--only=MIXER,...]`` writes benchmarks/results/<platform>/growth.json after each row, and
keeps rows that it has, unless ``--again`` is given. One layer of 256 features and four heads with its default options,
causal where possible, reads one row in float32:

    sparse     sparse attention: the gradient on 4k to 32k tokens, the exponents of its time and temporary memory
               (asked: at most 1.1)
    constant   mixers whose state has one size at every length: the forward pass on 1k to 64k tokens, microseconds a
               token, and the exponent of its time (asked: 0.9 to 1.1)

An exponent is the slope of a line fitted to the logarithms; times are the least of several runs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import time
from typing import Any

from benchmarks.counted import RESULTS

SPARSE = ("longformer_attention", "bigbird", "lsg_attention", "combiner_attention", "native_sparse_attention")
KINDS: dict[str, tuple[str, tuple[int, ...], tuple[float, float]]] = {
    "sparse": ("training", (4096, 8192, 16384, 32768), (0.0, 1.1)),
    "constant": ("forward", (1024, 4096, 16384, 65536), (0.9, 1.1)),
}
"""By kind of row: the pass, the lengths, and the least and the greatest exponent that is asked for."""
ROUNDS = 3


def constant() -> tuple[str, ...]:
    """The mixers whose state has one size at every length, by the counts of :mod:`benchmarks.counted`."""
    counted = json.loads(RESULTS.read_text())["mixers"]
    return tuple(name for name, row in counted.items() if row["state_bytes"] and len({*row["state_bytes"]}) == 1)


def measure(name: str, kind: str) -> dict[str, Any]:
    """The row of a mixer."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from benchmarks.counted import layer
    from benchmarks.mixers import program
    from benchmarks.mixers_speed import slope
    from layers.making import make

    way, lengths, (least, most) = KINDS[kind]
    took, memory = [], []
    for length in lengths:
        build, shape = layer(name, length)
        function, variables = program(make(build, nnx.Rngs(0)), way)
        x = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
        compiled = jax.jit(function).lower(*variables, x).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        times = []
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            jax.block_until_ready(compiled(*variables, x))
            times.append(1e3 * (time.perf_counter() - start))
        took.append(min(times[1:]))
    exponents = {"time_exponent": slope(lengths, took), "memory_exponent": slope(lengths, memory)}
    of_interest = [*exponents.values()] if kind == "sparse" else [exponents["time_exponent"]]
    return {
        "kind": kind,
        "lengths": lengths,
        "ms": [round(t, 2) for t in took],
        "mib": [round(m / 2**20, 1) for m in memory],
        **{what: round(value, 2) for what, value in exponents.items()},
        "missed": not all(least <= round(value, 2) <= most for value in of_interest),
        "jax": importlib.metadata.version("jax"),
        "load_average_at_end": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mixers, separated by commas; default all")
    parser.add_argument("--again", action="store_true", help="also rows that the file has")
    args = parser.parse_args()
    kinds = {**dict.fromkeys(constant(), "constant"), **dict.fromkeys(SPARSE, "sparse")}
    names = [name.strip() for name in args.only.split(",") if name.strip()] or list(kinds)
    if unknown := [name for name in names if name not in kinds]:
        parser.error(f"no row {unknown[0]!r}; there are: {', '.join(kinds)}")
    import jax

    path = pathlib.Path(__file__).parent / "results" / jax.default_backend() / "growth.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    for name in names:
        if name in report["rows"] and not args.again:
            continue
        try:
            row = measure(name, kinds[name])
        except jax.errors.JaxRuntimeError as error:  # without enough memory; a mixer that fails is a row that says so
            row = {"kind": kinds[name], "fault": str(error).splitlines()[0]}
        report["rows"][name] = row
        report |= {"cores": os.cpu_count(), "asked_for": kinds}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(name, json.dumps(row), flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
