"""A billion tokens through one block of LongNet: what each device computes, holds and sends, from programs that the
TPU compiler has made.

``python -m benchmarks.billion_tokens`` writes benchmarks/results/compiled/billion_tokens.json and
docs/billion_tokens.md. No TPU is needed and none is used (``pip install libtpu`` brings the compiler): nothing here is
a time.

A block of ``longnet_350m`` in bfloat16, one sequence, forward, and for the most chips of each length with the gradients
of its weights and its input, compiled for a topology of v5p chips that share the sequence; attention is the kernel for
TPUs. Segments grow fourfold from 4096 tokens to the whole sequence and rates with them, so that each segment keeps 4096
tokens. Of each program:

    operations   of one device: those of the whole program as written (primitives/operations.py), divided by the devices
    memory       of one device, as reported by the compiler: arguments, results and temporaries; or its message where
                 that does not fit
    sent         by one device, counted in the compiled program (benchmarks/collectives.py)
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
RESULTS = HOME / "benchmarks" / "results" / "compiled" / "billion_tokens.json"
PAGE = HOME / "docs" / "billion_tokens.md"
PLAN = {2**20: (1, 8, 64), 2**27: (64, 512), 2**30: (512, 4096)}
"""Chips that share a sequence of each length; the gradient is compiled for the most of each."""
CHIPS = {1: "v5p:2x2x1", 8: "v5p:2x2x2", 64: "v5p:4x4x4", 512: "v5p:8x8x8", 4096: "v5p:16x16x16"}
KEPT, GROWTH = 4096, 4
MODEL = "longnet_350m"


def pairs(length: int) -> dict[str, tuple[int, ...]]:
    """Segments growing from ``KEPT`` tokens to the whole sequence, and the rates at which each keeps ``KEPT``."""
    segments = [KEPT]
    while segments[-1] < length:
        segments.append(min(segments[-1] * GROWTH, length))
    return {"segments": tuple(segments), "rates": tuple(segment // KEPT for segment in segments)}


def measure(length: int, devices: int, training: bool) -> dict[str, Any]:
    """The cost of one block for each of ``devices`` that share a sequence of ``length`` tokens: forward, and with the
    gradient where ``training``.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    import zoo
    from benchmarks.collectives import count
    from pallas_kernels import compilers, dispatch
    from primitives import operations

    chips = compilers.tpu_topology(CHIPS[devices]).devices[:devices]
    mesh = Mesh(np.array(chips), ("sequence",), axis_types=(AxisType.Auto,))
    model = nnx.eval_shape(lambda: zoo.create(MODEL, depth=1, dtype=jnp.bfloat16, **pairs(length)))
    block = model.blocks[0]
    graph, params = nnx.split(block)
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, "sequence"))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), params)
    x = jax.ShapeDtypeStruct((1, length, model.config.features), jnp.bfloat16, sharding=split)

    def forward(params: Any, x: Any) -> Any:
        return nnx.merge(graph, params)(x)

    def both(params: Any, x: Any, dy: Any) -> Any:
        y, pull = jax.vjp(forward, params, x)
        return y, pull(dy)

    row: dict[str, Any] = {}
    passes: list[tuple[str, Any, tuple[Any, ...], Any]] = [("forward", forward, (params, x), split)]
    if training:
        passes.append(("training", both, (params, x, x), (split, (whole, split))))
    for name, function, arguments, results in passes:
        # Traced on whole arrays without a mesh: sharing a sequence does not change what is computed.
        flops = operations.count(
            function, *jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
        ).flops
        row[name] = {"operations": flops // devices}
        started = time.perf_counter()
        try:
            with jax.set_mesh(mesh), dispatch.platform("tpu"):
                compiled = jax.jit(function, out_shardings=results).lower(*arguments).compile()
        except jax.errors.JaxRuntimeError as error:
            too_much = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", str(error))
            if too_much is None:
                raise
            row[name]["refused"] = f"needs {too_much[1]} of {too_much[2]}"
            continue
        sizes = compiled.memory_analysis()
        row[name] |= {
            "argument_bytes": sizes.argument_size_in_bytes,
            "result_bytes": sizes.output_size_in_bytes,
            "temporary_bytes": sizes.temp_size_in_bytes,
            "sent_bytes": count(compiled.as_text(), devices),
            "compile_seconds": round(time.perf_counter() - started, 1),
        }
    return row


def page(rows: dict[str, dict[str, Any]]) -> str:
    """The page of the documentation, docs/billion_tokens.md."""
    lines = [
        "# A billion tokens",
        "",
        f"Written by `python -m benchmarks.billion_tokens` from programs that the TPU compiler made for v5p chips: one "
        f"block of `{MODEL}` in",
        "bfloat16, one sequence, shared by all chips. Per chip: operations as counted in the program, memory by the "
        "compiler's account, and bytes",
        "sent as counted in the compiled program. Segments grow fourfold from 4096 tokens to the whole sequence, and "
        "each keeps 4096 tokens.",
        "Nothing was run: there is no time in this table.",
        "",
        "| tokens | chips | pass | operations | memory | sent |",
        "| ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for length, by_devices in rows.items():
        for devices, row in by_devices.items():
            for name, figures in row.items():
                if "refused" in figures:
                    memory, sent = figures["refused"], ""
                else:
                    memory = _bytes(figures["argument_bytes"] + figures["result_bytes"] + figures["temporary_bytes"])
                    sent = _bytes(sum(figures["sent_bytes"].values()))
                lines.append(
                    f"| {int(length):,} | {devices} | {name} | {figures['operations']:.3g} | {memory} | {sent} |"
                )
    return "\n".join(lines) + "\n"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.3g} {unit}"
        size /= 1024
    raise AssertionError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")], default=list(PLAN))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax starts: otherwise it looks for the chips
    import jax

    # Lengths that are not requested keep their rows.
    rows: dict[str, dict[str, Any]] = json.loads(given.output.read_text())["rows"] if given.output.exists() else {}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    for length in given.lengths:
        found = {str(devices): measure(length, devices, devices == max(PLAN[length])) for devices in PLAN[length]}
        print(length, json.dumps(found), flush=True)
        rows = dict(sorted({**rows, str(length): found}.items(), key=lambda row: int(row[0])))
        report = {"model": MODEL, "chip": "v5p", "kept": KEPT, "jax": jax.__version__, "rows": rows}
        given.output.write_text(json.dumps(report, indent=1) + "\n")
        given.page.write_text(page(rows))


if __name__ == "__main__":
    main()
