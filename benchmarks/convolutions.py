"""One convolution's gradient on this device: each form of the ops compared with ``nnx.Conv``, by size of the kernel.

``python -m benchmarks.convolutions`` writes benchmarks/results/<platform>/convolutions.json after each row, and keeps
rows that it does not measure. The layer has 64 channels and a batch of 8, float32: a grid of 28x28, or its 784
positions as a causal sequence. The gradient is that of the sum of squares, in the input and in the kernel.

    compile  CPU seconds of tracing and compiling, without a cache
    run      milliseconds, the least of several runs; the forms and the peer take turns
    chosen   the form that the op takes by itself

Except for the chosen form, a form that took more than ``--limit`` CPU seconds to compile is not tried at larger sizes,
and one that needs more than 1 GiB of temporary memory is not run; the row gives the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

SIZES = (3, 5, 7, 9, 13, 21, 31)
BATCH, SIDE, CHANNELS = 8, 28, 64
PEER = "nnx.Conv"
ROUNDS, ENOUGH = 7, 6.0
"""Runs of each contestant, and the seconds after which no further run is started."""
MOST_MEMORY = 2**30


def contestants(op: str, size: int) -> tuple[dict[str, Callable[[Any, Any], Any]], tuple[Any, Any], str]:
    """The functions of (input, kernel) that compute the layer, by name; input and kernel; and the name of the form that
    the op chooses.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    import pallas_kernels
    from pallas_kernels.depthwise_convolution import xla
    from pallas_kernels.depthwise_convolution.call import DepthwiseCall
    from pallas_kernels.depthwise_convolution.forms import FORMS

    depthwise = op == "depthwise_convolution"
    call = getattr(pallas_kernels, op)
    grid, sizes = ((SIDE, SIDE), (size, size)) if depthwise else ((SIDE * SIDE,), (size,))
    rng = np.random.default_rng(0)
    shapes = (BATCH, *grid, CHANNELS), (*sizes, 1, CHANNELS)
    x, kernel = (jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes)

    edges = ((size // 2, size // 2),) * 2 if depthwise else ((0, 0), (size - 1, 0))

    def form(name: str) -> Callable[[Any, Any], Any]:
        def layer(x: Any, kernel: Any) -> Any:
            on_grid = (x, kernel[..., 0, :]) if depthwise else (x[:, None], kernel[None, :, 0])
            return xla.depthwise_convolution(DepthwiseCall(*on_grid, (1, 1), (1, 1), edges), name)[0].reshape(x.shape)

        return layer

    peer = nnx.Conv(
        CHANNELS,
        CHANNELS,
        sizes,
        padding=size // 2 if depthwise else "CAUSAL",
        feature_group_count=CHANNELS,
        use_bias=False,
        rngs=nnx.Rngs(0),
    )

    def conv(x: Any, kernel: Any) -> Any:
        module = nnx.clone(peer)
        module.kernel[...] = kernel
        return module(x)

    found = re.search(r"\bform=(\w+)", str(jax.make_jaxpr(call)(x, kernel)))
    assert found, "the op is not the primitive whose forms are measured"
    made: dict[str, Callable[[Any, Any], Any]] = {name: form(name) for name in FORMS}
    made |= {"reference": lambda x, kernel: call(x, kernel, implementation="reference"), PEER: conv}
    return made, (x, kernel), found[1]


def measure(op: str, size: int, left_out: dict[str, str], limit: float) -> dict[str, Any]:
    """The row of one size; adds forms that are not to be tried at larger sizes to ``left_out``."""
    import jax
    import jax.numpy as jnp

    made, arrays, chosen = contestants(op, size)
    row: dict[str, Any] = {"chosen": chosen}
    runs: dict[str, Any] = {}
    for name, layer in made.items():
        needed = name in (chosen, PEER)
        if name in left_out and not needed:
            row[name] = {"stopped": left_out[name]}
            continue
        start = time.process_time()
        loss = lambda x, kernel, layer=layer: jnp.sum(jnp.square(layer(x, kernel)))  # noqa: E731
        program = jax.jit(jax.grad(loss, (0, 1))).lower(*arrays).compile()
        seconds = time.process_time() - start
        row[name] = {"compile_cpu_s": round(seconds, 2)}
        if seconds > limit:
            left_out[name] = f"compiled for {seconds:.0f} s at {size}"
        memory = program.memory_analysis().temp_size_in_bytes
        if memory > MOST_MEMORY and not needed:
            row[name]["stopped"] = f"needs {memory / 2**30:.1f} GiB"
        else:
            runs[name] = program
    gradients = {name: jax.block_until_ready(run(*arrays)) for name, run in runs.items()}
    for name, found in gradients.items():
        difference = max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in zip(found, gradients[PEER]))
        assert difference < 1e-4, f"{op}, {size}: {name} differs from {PEER} by {difference:.0e}"
    times: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    while not times[PEER] or (len(times[PEER]) < ROUNDS and time.perf_counter() - begin < ENOUGH):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(*arrays))
            times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        row[name]["run_ms"] = round(1e3 * min(seconds), 2)
    row[f"times_faster_than_{PEER}"] = round(min(times[PEER]) / min(times[chosen]), 2)
    return row


def main(given: list[str] | None = None) -> None:
    ops = ("depthwise_convolution", "short_convolution")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convolutions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(ops), help=f"of {', '.join(ops)}")
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")], default=list(SIZES))
    parser.add_argument("--limit", type=float, default=20.0, help="CPU seconds of compiling; see above")
    parser.add_argument("--output", type=pathlib.Path, help="default benchmarks/results/<platform>/convolutions.json")
    args = parser.parse_args(given)
    if unknown := sorted(set(args.only) - set(ops)):
        parser.error(f"unknown ops {', '.join(unknown)}; there are {', '.join(ops)}")
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_compilation_cache", False)
    jax.jit(lambda x: x @ x)(jnp.ones((2, 2)))  # the first program of a process also starts the compiler
    path = args.output or pathlib.Path(__file__).parent / "results" / jax.default_backend() / "convolutions.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else {}
    for op in args.only:
        left_out: dict[str, str] = {}
        for size in sorted(args.sizes):
            row = measure(op, size, left_out, args.limit)
            measured = {**rows.get(op, {}), str(size): row}
            rows[op] = {key: measured[key] for key in sorted(measured, key=int)}
            rows = {each: rows[each] for each in ops if each in rows}
            print(op, size, json.dumps(row), flush=True)
            report = {
                "jax": jax.__version__,
                "cores": os.cpu_count(),
                "load_average_at_end": os.getloadavg()[0],
                "rows": rows,
            }
            path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
