"""The memories of Titans and Miras on this device: learning in chunks compared with token by token, the same algorithm,
in one run.

``python -m benchmarks.titans`` writes benchmarks/results/<platform>/titans.json: milliseconds of the forward pass and
of its gradient (the least of several runs, the two forms taking turns), their ratio, the greatest relative difference
of their outputs, and the temporary memory of the gradient. One row, four heads of 32, float32.

Moneta amplifies rounding errors: with its initial gates the two forms differ by 1e-6 after 64 tokens and by 1 after
2048, in float64 by 1e-15 and 1e-7. They are the same algorithm, but float32 arithmetic does not determine the weights
at the end of such lengths.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from layers import NeuralMemory
    from layers.memory.learning import Tokens

HEADS, SIZE = 4, 32


def tokens_of(layer: NeuralMemory, length: int) -> Tokens:
    """The inputs of the memory for random tokens, with the layer's initial gates."""
    import jax.numpy as jnp

    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, length, HEADS * SIZE)), jnp.float32)
    return layer.tokens(x, layer.project(x), None)


def milliseconds(run: Any, *arguments: Any) -> float:
    import jax

    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return 1e3 * (time.perf_counter() - start)


def measure(name: str, chunk: int, length: int, repeats: int) -> dict[str, Any]:
    """The row of one memory: both forms, forward and gradient."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from layers import NeuralMemory
    from layers.memory.learning import parallel
    from layers.memory.sequential import sequential

    forms = {"chunked": parallel, "sequential": sequential}
    layer = NeuralMemory(HEADS * SIZE, num_heads=HEADS, memory=name, conv_size=None, rngs=nnx.Rngs(0))
    arguments = (layer.initial_weights(jnp.float32), tokens_of(layer, length))

    def forward(form: Any) -> Any:
        return lambda weights, tokens: form(layer.memory, weights, tokens, chunk)

    def gradient(form: Any) -> Any:
        return jax.grad(lambda weights, tokens: jnp.sum(jnp.square(forward(form)(weights, tokens))), argnums=(0, 1))

    row: dict[str, Any] = {}
    for what, make in (("forward", forward), ("gradient", gradient)):
        runs = {label: jax.jit(make(form)).lower(*arguments).compile() for label, form in forms.items()}
        found = {label: jax.tree.leaves(run(*arguments)) for label, run in runs.items()}
        times: dict[str, list[float]] = {label: [] for label in runs}
        for _ in range(repeats):
            for label, run in runs.items():
                times[label].append(milliseconds(run, *arguments))
        least = {label: min(all_times) for label, all_times in times.items()}
        row[what] = {f"{label}_ms": round(value, 2) for label, value in least.items()}
        row[what]["times_faster"] = round(least["sequential"] / least["chunked"], 2)
        pairs = zip(found["chunked"], found["sequential"], strict=True)
        row[what]["relative_difference"] = max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)
        row[what]["temporary_mib"] = {
            label: round(run.memory_analysis().temp_size_in_bytes / 2**20, 1) for label, run in runs.items()
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--chunks", type=lambda text: [int(n) for n in text.split(",")], default=[16, 64])
    parser.add_argument("--memories", type=lambda text: text.split(","), help="commas between; default all")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--output", type=pathlib.Path, help="default benchmarks/results/<platform>/titans.json")
    args = parser.parse_args()
    import jax

    from layers import MEMORIES

    rows = {}
    for name in args.memories or MEMORIES:
        for chunk in args.chunks:
            rows[f"{name}, chunks of {chunk}"] = row = measure(name, chunk, args.length, args.repeats)
            print(f"{name}, chunks of {chunk}", json.dumps(row), flush=True)
    report = {
        "length": args.length,
        "heads": HEADS,
        "size": SIZE,
        "dtype": "float32",
        "jax": jax.__version__,
        "cores": os.cpu_count(),
    }
    report |= {"load_average_at_end": os.getloadavg()[0], "rows": rows}
    path = args.output or pathlib.Path(__file__).parent / "results" / jax.default_backend() / "titans.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
