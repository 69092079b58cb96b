"""Every Pallas kernel at the realistic shapes of its op, compiled for devices that need not be present.

``JAX_PLATFORMS=cpu python -m benchmarks.kernels`` compiles the outputs and all gradients of each op and shape for an
H100, TPU v5e and v6e (``pip install -e '.[compile]'``), and adds the compilers' reports, under the version of JAX in
use, to benchmarks/results/compiled/kernels.json. ``python -m docs.kernels`` makes the page. Nothing is timed, because
nothing is run.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax

    from pallas_kernels.dispatch import Op, Shape

RESULTS = pathlib.Path(__file__).parent / "results" / "compiled" / "kernels.json"
KERNELS = {"gpu": ("mosaic_gpu",), "tpu": ("splash", "mosaic_tpu")}
_CALLS = ("pallas_call", "core_map", "mpmd_map")


def gradients(op: Op, shape: Shape) -> tuple[Callable[[dict[str, Any]], Any], dict[str, jax.ShapeDtypeStruct]]:
    """A function that returns the outputs and the gradients of all floating-point arrays, and its arguments."""
    import jax
    import jax.numpy as jnp

    import pallas_kernels

    call = functools.partial(getattr(pallas_kernels, op.name), **shape.options)

    def both(arrays: dict[str, jax.Array]) -> Any:
        floating = {n: x for n, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        rest = {n: x for n, x in arrays.items() if n not in floating}
        outputs, pull = jax.vjp(lambda floating: call(**floating, **rest), floating)
        return outputs, pull(jax.tree.map(jnp.cos, outputs))

    return both, shape.abstract(jnp.bfloat16)


def estimates(jaxpr: Any) -> Iterator[Any]:
    """The cost estimates of all Pallas calls in a jaxpr."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in _CALLS:
            yield equation.params["cost_estimate"]
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from estimates(inner)


def row(op: Op, shape: Shape, device: str) -> dict[str, Any]:
    """The report on one op and shape on one device: its compiled kernels, or the reason why XLA's form serves it."""
    import jax

    from pallas_kernels import compilers, dispatch

    function, arrays = gradients(op, shape)
    platform = compilers.DEVICES[device].platform
    with dispatch.platform(platform), dispatch.recording() as choices:
        costs = list(estimates(jax.make_jaxpr(lambda a: function(a))(arrays).jaxpr))
    (choice,) = choices
    found: dict[str, Any] = {
        "op": op.name,
        "shape": shape.name,
        "device": device,
        "jax": jax.__version__,
        "implementation": choice.implementation,
    }
    if choice.implementation not in KERNELS[platform]:
        found["refused"] = {name: reason for name, reason in choice.rejected if name in KERNELS[platform]}
        return found
    program = compilers.compile_for(device, function, arrays)
    found["kernels"] = [
        {k: v for k, v in dataclasses.asdict(kernel).items() if v is not None and k != "remarks"}
        for kernel in program.kernels
    ]
    if None not in costs:  # JAX's own splash attention estimates its forward pass only
        found["gflop"] = _rounded(sum(cost.flops for cost in costs) / 1e9)
        found["exponentials_millions"] = _rounded(sum(cost.transcendentals for cost in costs) / 1e6)
        found["mbyte"] = _rounded(sum(cost.bytes_accessed for cost in costs) / 1e6)
    return found


def _rounded(x: float) -> float:
    return float(f"{x:.3g}") if math.isfinite(x) else x


def key(found: dict[str, Any]) -> tuple[str, ...]:
    return tuple(found[name] for name in ("op", "shape", "device", "jax"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--devices", type=lambda text: text.split(","), help="of which to compile for, commas between; default all"
    )
    parser.add_argument(
        "--ops", type=lambda text: text.split(","), help="of which to compile, commas between; default all"
    )
    parser.add_argument("--missing", action="store_true", help="only what the file does not have")
    given = parser.parse_args()
    import jax

    from pallas_kernels import compilers
    from pallas_kernels.dispatch import OPS

    rows = {key(found): found for found in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    for device in given.devices or compilers.DEVICES:
        if (reason := compilers.missing(device)) is not None:
            raise SystemExit(f"benchmarks.kernels: {reason}")
        for op in (OPS[name] for name in given.ops or OPS):
            for shape in op.shapes:
                if given.missing and (op.name, shape.name, device, jax.__version__) in rows:
                    continue
                found = row(op, shape, device)
                rows[key(found)] = found
                print(json.dumps(found), flush=True)
                write(rows)


def write(rows: dict[tuple[str, ...], dict[str, Any]]) -> None:
    """Writes all rows of ops and shapes that still exist; those of another version of JAX stay as they were last
    compiled.
    """
    from pallas_kernels.dispatch import OPS

    kept = [
        found
        for _, found in sorted(rows.items())
        if found["op"] in OPS and found["shape"] in {shape.name for shape in OPS[found["op"]].shapes}
    ]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(found) for found in kept) + "\n]\n")


if __name__ == "__main__":
    main()
