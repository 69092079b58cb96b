"""What one layer of every mixer costs, counted by tracing: ``python -m benchmarks.counted`` writes
benchmarks/results/counted/mixers.json.

Nothing is computed or timed. Each mixer has its default options, four heads and 256 features, and reads one sequence; a
mixer of maps reads a square map with as many tokens, and a mixer with a fixed length is created for the length
measured. Operations are those of :mod:`primitives.operations` in a whole forward pass on a CPU: arithmetic, comparisons
and data movement. The file also lists the mixers in the models of each claim.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flax import nnx

    from layers.mixer import Mixer

HOME = Path(__file__).resolve().parents[1]
RESULTS = HOME / "benchmarks" / "results" / "counted" / "mixers.json"
CLAIMS = HOME / "benchmarks" / "results" / "cpu" / "claims"
FEATURES, HEADS = 256, 4
LENGTHS = (256, 1024, 4096, 16384)  # squares, for maps


def layer(name: str, length: int) -> tuple[Callable[[nnx.Rngs], Mixer], tuple[int, ...]]:
    """A function that creates a mixer with its default options, causal where possible, and the shape of one input of
    ``length`` tokens, a square for mixers of maps.
    """
    import layers
    from layers.mixer import accepted

    cls = layers.mixer_class(name)
    on_map = "sequence" not in cls.layouts
    grid = (math.isqrt(length),) * 2
    place = layers.Place(num_heads=HEADS, grid=grid if on_map else None, features=FEATURES)
    options = {name: length for name in ("max_length", "longest") if name in accepted(cls)[0]}
    make = functools.partial(layers.create_mixer, name, FEATURES, causal=cls.supports_causal, place=place, **options)
    return (lambda rngs: make(rngs=rngs)), (1, *(grid if on_map else (length,)), FEATURES)


def count(name: str, lengths: Sequence[int] = LENGTHS) -> dict[str, Any]:
    """Parameters, operations at each length, bytes of the state of one sequence, ops and exponent of a mixer, causal
    where possible.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import layers
    from layers.making import abstract
    from pallas_kernels import dispatch
    from primitives import operations

    cls = layers.mixer_class(name)
    totals, states = [], []
    ops: dict[str, None] = {}
    for length in lengths:
        build, shape = layer(name, length)
        mixer = abstract(build)
        mixer.eval()
        graph, variables = nnx.split(mixer)
        x = jax.ShapeDtypeStruct(shape, jnp.float32)

        def run(variables: Any, x: jax.Array, graph: Any = graph) -> jax.Array:
            return nnx.merge(graph, variables)(x)

        with dispatch.recording() as choices:
            totals.append(operations.count(run, variables, x).total)
        ops |= dict.fromkeys(choice.op for choice in choices)
        if cls.supports_causal:
            empty = operator.methodcaller("init_state", 1, max_length=length)
            state = jax.eval_shape(
                lambda variables, graph=graph, empty=empty: empty(nnx.merge(graph, variables)), variables
            )
            states.append(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)))
    return {
        "parameters": layers.parameter_count(mixer),
        "exponent": mixer.complexity,
        "operations": totals,
        "state_bytes": states,
        "ops": sorted(ops),
    }


def mixers_of(model: str, options: dict[str, Any]) -> list[str]:
    """Registered names of the mixers in a model."""
    from flax import nnx

    import layers
    from zoo.creation import create_abstract

    built = create_abstract(model, **options)
    names: dict[type, str] = {layers.mixer_class(name): name for name in layers.list_mixers()}
    return [names[type(module)] for _, module in nnx.iter_modules(built) if type(module) in names]


def contestants() -> dict[str, list[str]]:
    """The mixers of the models compared, by claim."""
    found: dict[str, set[str]] = {}
    known: dict[str, list[str]] = {}
    for path in sorted(CLAIMS.glob("*.json")):
        report = json.loads(path.read_text())
        for row in report["rows"]:
            key = json.dumps([row["model"], row["options"]])
            if key not in known:
                known[key] = mixers_of(row["model"], row["options"])
            found.setdefault(report["name"], set()).update(known[key])
    return {claim: sorted(mixers) for claim, mixers in sorted(found.items())}


def main() -> None:
    """Counts all mixers and writes the file."""
    argparse.ArgumentParser(prog="python -m benchmarks.counted", description=__doc__).parse_args()
    import jax

    import layers

    rows = {name: count(name) for name in layers.list_mixers()}
    report = {
        "features": FEATURES,
        "heads": HEADS,
        "lengths": LENGTHS,
        "jax": jax.__version__,
        "mixers": rows,
        "claims": contestants(),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{RESULTS}: {len(rows)} mixers")


if __name__ == "__main__":
    main()
