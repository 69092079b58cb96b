"""Every mixer side by side: what it learns in one backbone with equal parameters and budget, and what it costs against
length.

    python -m benchmarks.mixers [--quick] [--only=MIXER,...] [--tasks=...] [--seeds=0,1,2] [--lengths=...] [--minutes=N]

Learning is that of :mod:`training.comparison`: digits, recall, copying and bytes. Costs are of one layer of 256
features and four heads with its default options, causal where it can be, that reads one row in float32 (a square, for
mixers of maps): parameters, operations by the zoo's counter, the least milliseconds of several runs, and the memory
that the compiled program takes, its arguments and results included; of the forward pass, and of the gradient of the
mean square in parameters and input.

Every row is written at once to benchmarks/results/<platform>/mixers.json (of the quick form, mixers_quick.json): the
same command continues where it was cut short, and ``--again`` measures again. Another process makes the rows, so that a
mixer that fails, or takes too long or too much memory, is a row that says so. At the end come a CSV file, two pictures,
docs/pictures/mixers_learning.svg and mixers_cost.svg (of the quick form, mixers_quick_...), and
``python -m docs.side_by_side`` writes the page of them.

``--quick``: eight mixers, two tasks with fewer steps, one seed, two lengths; nine minutes on two cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks import rows as shared
from benchmarks.counted import FEATURES, HEADS, LENGTHS, layer
from benchmarks.curves import against_length
from benchmarks.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WAYS = ("forward", "training")
ROUNDS, ENOUGH = 5, 3.0
"""Runs of a program, and the seconds after which there are no more."""
QUICK: Mapping[str, Any] = {
    "mixers": (
        "attention", "linear_attention", "mamba2", "gated_delta_net", "rwkv7", "hgrn2", "neighborhood",
        "focal_modulation",
    ),
    "steps": {"digits": 300, "copying": 400},
    "lengths": (256, 4096),
}  # fmt: skip


def program(mixer: Any, way: str) -> tuple[Any, tuple[Any, ...]]:
    """A pass of a mixer as a function of its parameters, its other variables and its input; and the parameters and
    variables.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    mixer.train() if way == "training" else mixer.eval()
    graph, parameters, others = nnx.split(mixer, nnx.Param, ...)

    def forward(parameters: Any, others: Any, x: jax.Array) -> Any:
        return nnx.merge(graph, parameters, others)(x)

    def loss(parameters: Any, others: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(forward(parameters, others, x)))

    return (forward if way == "forward" else jax.grad(loss, (0, 2))), (parameters, others)


def cost(job: Mapping[str, Any], most_bytes: int) -> Row:
    """The cost of a pass of a mixer over ``job["length"]`` tokens; "fault" where it needs more memory than there is."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from layers.making import abstract, make
    from layers.state import parameter_count
    from primitives import operations
    from primitives.memory import size

    build, shape = layer(job["mixer"], job["length"])
    mixer = abstract(build)
    function, variables = program(mixer, job["way"])
    counted = operations.count(function, *variables, jax.ShapeDtypeStruct(shape, jnp.float32))
    row: Row = {"parameters": parameter_count(mixer), "operations": counted.total}
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))
    function, variables = program(make(build, nnx.Rngs(0)), job["way"])
    since = time.perf_counter()
    compiled = jax.jit(function).lower(*variables, x).compile()
    row["compile_seconds"] = round(time.perf_counter() - since, 2)
    used = compiled.memory_analysis()
    taken = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes - used.alias_size_in_bytes
    row["mib"] = round(taken / 2**20, 2)
    if taken > most_bytes:
        return {**row, "fault": f"it takes {size(taken)} of memory, and may take {size(most_bytes)}"}
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) <= ROUNDS and (len(times) < 2 or time.perf_counter() - begin < ENOUGH):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*variables, x))
        times.append(1e3 * (time.perf_counter() - start))
    return {**row, "milliseconds": round(min(times[1:]), 3)}


def work() -> None:
    """The worker process that computes rows."""
    from training import comparison
    from training.memory import available

    most_bytes = available() // 2
    shared.serve(lambda job: comparison.run(job) if "task" in job else cost(job, most_bytes))


def cost_jobs(names: Sequence[str], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Short lengths first: a mixer that takes too long at one length is not tried at a greater one."""
    return [{"way": way, "mixer": name, "length": n} for n in sorted(lengths) for name in names for way in WAYS]


def curves(rows: Sequence[Row], way: str, what: str) -> dict[str, list[tuple[int, float]]]:
    """The points of each mixer: length, and the figure measured there."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["job"].get("way") == way and what in row:
            found.setdefault(row["job"]["mixer"], []).append((row["job"]["length"], row[what]))
    return {name: sorted(points) for name, points in found.items()}


def draw_costs(rows: Sequence[Row]) -> Figure:
    """Time and memory, forward and training, against length: a line for each mixer, with its name beside it."""
    from matplotlib.figure import Figure

    lengths = sorted({row["job"]["length"] for row in rows if "length" in row["job"]})
    names = sorted({row["job"]["mixer"] for row in rows if "length" in row["job"]})
    height = max(3.5, 0.19 * len(names))
    figure = Figure(figsize=(14, 2 * height), layout="constrained")
    shown = {"milliseconds": "time, ms", "mib": "memory, MiB"}
    for line, (what, label) in zip(figure.subplots(2, 2, squeeze=False), shown.items(), strict=True):
        for axes, way in zip(line, WAYS, strict=True):
            if found := curves(rows, way, what):
                against_length(axes, found, lengths, lines=int(5.5 * height), names=names)
            axes.set(title=f"{way}: {label}", xlabel="tokens", ylabel=label)
    figure.suptitle(f"One layer of {FEATURES} features and {HEADS} heads, one row, float32")
    return figure


def _arguments() -> argparse.ArgumentParser:
    parser = shared.parser(__doc__, "nine minutes on two cores", 300.0)
    parser.add_argument("--only", help="mixers, separated by commas; default all, of the quick form eight")
    parser.add_argument("--tasks", help="separated by commas, or none; default all, of the quick form two")
    parser.add_argument("--lengths", help=f"or none; default {','.join(map(str, LENGTHS))}, of the quick form two")
    return parser


def _wanted(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The jobs that are asked for."""
    import layers
    from training import comparison, problems

    def listed(text: str | None, default: Sequence[Any]) -> list[str]:
        return [*map(str, default)] if text is None else [part for part in text.split(",") if part not in ("", "none")]

    names = listed(given.only, QUICK["mixers"] if given.quick else layers.list_mixers())
    tasks = listed(given.tasks, list(QUICK["steps"]) if given.quick else list(problems.PROBLEMS))
    comparison.check(names)
    for task in tasks:
        problems.problem(task)
    asked = ",".join(listed(given.lengths, QUICK["lengths"] if given.quick else LENGTHS))
    lengths = comparison.numbers(asked, "lengths") if asked else []
    jobs = cost_jobs(names, lengths)
    for seed in shared.seeds(given):
        for task in tasks:
            jobs += comparison.jobs(names, [task], [seed], QUICK["steps"].get(task) if given.quick else None)
    return jobs


def measure(given: argparse.Namespace) -> None:
    """Makes the rows that are missing, and all files.

    Raises:
      ValueError: an unknown name, near ones given, or rows that there was no time for.
    """

    def do(job: shared.Job, worker: Any, results: Any) -> Row:
        if "length" in job:
            for row in results.rows:
                shorter = row["job"].get("length", job["length"]) < job["length"]
                if shorter and {**row["job"], "length": job["length"]} == job and "milliseconds" not in row:
                    return {"fault": f"not tried: {row['job']['length']:,} tokens were too many"}
        return worker.run(job, given.row_seconds)

    about = {"features": FEATURES, "heads": HEADS, "row_seconds": given.row_seconds}
    name = "mixers_quick" if given.quick else "mixers"
    shared.make(given, "benchmarks.mixers", name, _wanted(given), about, do, draw)


def draw(rows: Sequence[Row]) -> dict[str, Figure]:
    """The two pictures; those of what no row has are left out."""
    from training import problems, standings

    tasks = [task for task in problems.PROBLEMS if any(row["job"].get("task") == task for row in rows)]
    figures = {"_learning": standings.draw(rows, tasks)} if tasks else {}
    if any("milliseconds" in row for row in rows):
        figures["_cost"] = draw_costs(rows)
    return figures


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    shared.run(_arguments().parse_args(arguments), work, measure)


if __name__ == "__main__":
    main()
