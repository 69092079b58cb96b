"""What each policy of rematerialization saves and costs: the gradient of a model, in one run on this device.

``python -m benchmarks.rematerialization [--only=MODEL,...] [--batch=N]`` writes
benchmarks/results/<platform>/rematerialization.json after each row, and keeps rows that it does not measure. Float32,
training mode, the gradient of the mean square of the outputs. The contestants take turns after they were compiled.

    peak      MiB that the compiled program needs: parameters, gradients and what it keeps between the passes
    step      milliseconds, the least of all rounds

The policies are those of :mod:`layers.rematerialization`. "as made" is neither recomputed nor scanned. The compiler of
jax 0.10 for CPUs saves nothing without ``scan=True``, so that the policies are scanned there, which itself takes memory
for stacked parameters and gradients; with later versions they are not. The rows of each version are kept.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import time
from typing import Any

MODELS: dict[str, tuple[int, int | None]] = {
    "vit_small_patch16_224": (8, None),
    "gpt2": (2, 512),
    "mamba_130m": (1, 512),
}
"""The rows of a batch, and the tokens of a row where there are tokens."""
SCANNED: dict[str, dict[str, Any]] = {
    f"{remat}, scanned": {"remat": remat, "scan": True} for remat in ("nothing", "dots", "block")
}
FORMS: dict[str, dict[str, Any]] = {"dots": {"remat": "dots"}, "block": {"remat": "block"}}
"""The policies where a scan is not needed."""


def program(name: str, batch: int, options: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """The compiled gradient of a model, and its arguments."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import zoo

    length = MODELS[name][1]
    model: Any = zoo.create(name, **options)
    model.train()
    size = None if length else model.config.image_size
    x = jnp.zeros((batch, length), jnp.int32) if length else jnp.zeros((batch, size, size, 3))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params: Any, rest: Any, x: Any) -> Any:
        return jnp.mean(jnp.square(nnx.merge(graphdef, params, rest, copy=True)(x).astype(jnp.float32)))

    return jax.jit(jax.grad(loss)).lower(params, rest, x).compile(), (params, rest, x)


def measure(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """The row of a model."""
    import jax

    policies = SCANNED if importlib.metadata.version("jax").startswith("0.10.") else FORMS
    made = {form: program(name, batch, options) for form, options in {"as made": {}, **policies}.items()}
    took = {form: float("inf") for form in made}
    for _ in range(rounds + 1):  # the first run touches the memory for the first time
        for form, (compiled, arguments) in made.items():
            start = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            took[form] = min(took[form], time.perf_counter() - start)
    found = {}
    for form, (compiled, _) in made.items():
        said = compiled.memory_analysis()
        parts = (said.argument_size_in_bytes, said.temp_size_in_bytes, said.output_size_in_bytes)
        found[form] = {"peak": round(sum(parts) / 2**20, 1), "step": round(1e3 * took[form], 1)}
    plain = found["as made"]
    for row in found.values():
        row |= {
            "of_the_peak": round(row["peak"] / plain["peak"], 2),
            "times_the_step": round(row["step"] / plain["step"], 2),
        }
    return {
        "forms": found,
        "batch": batch,
        "tokens": MODELS[name][1],
        "rounds": rounds,
        "versions": {package: importlib.metadata.version(package) for package in ("jax", "flax")},
        "cores": os.cpu_count(),
        "load_average_at_end": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"models, separated by commas, of: {', '.join(MODELS)}")
    parser.add_argument("--batch", type=int, help="rows of a batch, in a row of the table's own")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    names = [name.strip() for name in args.only.split(",") if name.strip()] or list(MODELS)
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"no row {unknown[0]!r}; there are: {', '.join(MODELS)}")
    import jax

    path = pathlib.Path(__file__).parent / "results" / jax.default_backend() / "rematerialization.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    for name in names:
        row = measure(name, args.batch or MODELS[name][0], args.rounds)
        place = f"{name}, jax {'.'.join(row['versions']['jax'].split('.')[:2])}"
        report["rows"][place + (f", batch {args.batch}" if args.batch else "")] = row
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
        print(name, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
