"""What devices that share a sequence send each other: bytes counted in the compiled program, on eight virtual devices
of the CPU.

``python -m benchmarks.collectives`` writes benchmarks/results/cpu/collectives.json: for one layer, forward and with all
gradients, the bytes that each device sends at growing length, with the implementation that dispatch picks or a named
one, compared with what the compiler does by itself ("xla": the op written for whole arrays and split by the compiler).
A collective in a loop counts once for each iteration. In an all-gather or a reduce-scatter over n devices, each sends
its own part n - 1 times; in an all-reduce twice that (a ring); in an all-to-all everything but its own share; in a
permutation everything. Where a memory is handed over, the devices work one after the other: the file also has the share
of time in which each device is idle, by the number of sequences.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEVICES = 8
LENGTHS = (1024, 2048, 4096, 8192)
BATCH, FEATURES, HEADS = 1, 128, 8
LAYERS: dict[str, tuple[str, dict[str, Any], dict[str, str] | None]] = {
    "attention, heads traded": ("attention", {"num_heads": HEADS}, {"attention": "all_to_all"}),
    "attention, ring": ("attention", {"num_heads": HEADS}, {"attention": "ring"}),
    "attention, by the compiler": ("attention", {"num_heads": HEADS}, {"attention": "xla"}),
    "dilated attention, kept keys sent": (
        "dilated_attention",
        {"num_heads": HEADS, "segments": (128, 512, 2048), "rates": (1, 4, 16)},
        None,
    ),
    "mamba, states passed": ("mamba", {}, {"selective_scan": "state_passing"}),
    "mamba2, states passed": ("mamba2", {"state_dim": 64, "head_dim": 32}, {"linear_attention": "state_passing"}),
    "mamba2, by the compiler": ("mamba2", {"state_dim": 64, "head_dim": 32}, {"linear_attention": "xla"}),
    "gated delta net, states passed": ("gated_delta_net", {"num_heads": 4}, {"delta_rule": "state_passing"}),
    "titans, memory handed over": ("neural_memory", {"num_heads": 4}, None),
    "titans as context, memory handed over": ("titans_mac", {"num_heads": 4, "segment": 64}, None),
    "gated delta net, by the compiler": ("gated_delta_net", {"num_heads": 4}, {"delta_rule": "xla"}),
}
"""The mixer, its options, and the implementations it is to use."""

_SIZES = {
    "f64": 8,
    "s64": 8,
    "u64": 8,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "s8": 1,
    "u8": 1,
    "pred": 1,
}
_COLLECTIVE = re.compile(
    r"= (?P<shape>.+?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])")


def sent(line: str, devices: int = DEVICES) -> float:
    """Bytes that each of ``devices`` sends for the collective in a line of HLO, 0 if it has none."""
    found = _COLLECTIVE.search(line)
    if found is None:
        return 0.0
    size = sum(
        _SIZES.get(kind, 0) * math.prod(int(n) for n in shape.split(",") if n)
        for kind, shape in _ARRAY.findall(found["shape"])
    )
    if found["kind"] == "collective-permute":
        return float(size)
    groups = _GROUPS.search(line)
    count = devices if groups is None else int(groups[2]) if groups[2] else len(groups[1].split(","))
    # Sizes are of results: all of an all-gather, a part of a reduce-scatter.
    factor = {
        "all-gather": (count - 1) / count,
        "reduce-scatter": count - 1,
        "all-reduce": 2 * (count - 1) / count,
        "all-to-all": (count - 1) / count,
    }
    return size * factor[found["kind"]]


def count(program: str, devices: int = DEVICES) -> dict[str, float]:
    """Bytes that each of ``devices`` sends in an optimized HLO program, by kind of collective.

    Raises:
      ValueError: a loop with a collective in it, of which the program does not state the number of iterations.
    """
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in program.splitlines():
        if (head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)) and not line.startswith(" "):
            name = head[2]
            entry = name if head[1] else entry
            bodies[name] = []
        elif name:
            bodies[name].append(line)

    def total(name: str) -> dict[str, float]:
        sums: dict[str, float] = {}
        for line in bodies.get(name, ()):
            if found := _COLLECTIVE.search(line):
                sums[found["kind"]] = sums.get(found["kind"], 0.0) + sent(line, devices)
            turns = 1
            called = re.findall(
                r"(?:body|to_apply|calls|branch_computations=\{?|true_computation|false_computation)=?%?([\w.\-]+)",
                line,
            )
            if " while(" in line:
                known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                turns = int(known[1]) if known else 0
            for other in called:
                inner = total(other)
                if inner and not turns:
                    raise ValueError(f"a loop of unknown length has collectives in it: {line.strip()[:120]}")
                for kind, size in inner.items():
                    sums[kind] = sums.get(kind, 0.0) + turns * size
        return sums

    return total(entry)


def measure(
    mixer: str, options: dict[str, Any], chosen: dict[str, str] | None, length: int
) -> dict[str, dict[str, float]]:
    """Bytes sent in the forward pass of a layer, and with the gradients of its parameters and its input."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import layers
    from pallas_kernels.dispatch import use

    mesh = jax.make_mesh((DEVICES,), ("sequence",), axis_types=(AxisType.Auto,))
    graph, params = nnx.split(
        nnx.eval_shape(lambda: layers.create_mixer(mixer, features=FEATURES, causal=True, rngs=nnx.Rngs(0), **options))
    )
    split, whole = NamedSharding(mesh, PartitionSpec(None, "sequence")), NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((BATCH, length, FEATURES), jnp.float32, sharding=split)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), params)

    def forward(params: Any, x: Any) -> Any:
        return nnx.merge(graph, params)(x)

    def gradients(params: Any, x: Any) -> Any:
        return jax.grad(lambda params, x: jnp.sum(jnp.square(forward(params, x))), (0, 1))(params, x)

    programs: dict[str, tuple[Callable[..., Any], Any]] = {
        "forward": (forward, split),
        "training": (gradients, (whole, split)),
    }
    row = {}
    for name, (function, places) in programs.items():
        with jax.set_mesh(mesh), use(**(chosen or {})):
            row[name] = count(jax.jit(function, out_shardings=places).lower(params, x).compile().as_text())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")], default=list(LENGTHS))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cpu" / "collectives.json")
    given = parser.parse_args()
    flag = f"--xla_force_host_platform_device_count={DEVICES}"
    if flag not in os.environ.get("XLA_FLAGS", ""):  # read when jax starts: in a new process
        command = [sys.executable, "-m", "benchmarks.collectives", *sys.argv[1:]]
        sys.exit(subprocess.call(command, env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}))
    rows: dict[str, Any] = {}
    for name, (mixer, options, chosen) in LAYERS.items():
        if given.only not in name:
            continue
        rows[name] = {str(length): measure(mixer, options, chosen, length) for length in given.lengths}
        sums = {length: [sum(kinds.values()) / 1024 for kinds in row.values()] for length, row in rows[name].items()}
        shown = "   ".join(
            f"{length}: {forward:,.0f} / {training:,.0f}" for length, (forward, training) in sums.items()
        )
        print(f"{name:<36} KiB forward / training   {shown}", flush=True)
    import jax

    from primitives import sequence

    with jax.set_mesh(jax.make_mesh((DEVICES,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))):
        idle = {f"batch of {rows}": round(sequence.idle_share(rows), 3) for rows in (1, DEVICES, 8 * DEVICES)}
    report = {
        "devices": DEVICES, "batch": BATCH, "features": FEATURES, "dtype": "float32", "jax": jax.__version__,
        "idle_share_of_handing_over": idle, "bytes_sent_by_each_device": rows,
    }  # fmt: skip
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
