"""Every mixer side by side: what it learns in one backbone with equal parameters and budget, and what it costs against
length.

    python -m benchmarks.mixers [--quick] [--only=MIXER,...] [--tasks=...] [--seeds=0,1,2] [--lengths=...] [--minutes=N]

Learning is that of :mod:`training.comparison`: digits, recall, copying and bytes. Costs are of one layer of 256
features and four heads with its default options, causal where it can be, that reads one row in float32 (a square, for
mixers of maps): parameters, operations by the zoo's counter, the least milliseconds of several runs, and the memory
that the compiled program takes, its arguments and results included; of the forward pass, and of the gradient of the
mean square in parameters and input.

Every row is written at once to benchmarks/results/<platform>/mixers.json (of the quick form, mixers_quick.json): the
same command goes on where it was cut short, and ``--again`` measures again. Another process makes the rows, so that a
mixer that fails, or takes too long or too much memory, is a row that says so. At the end come a CSV file, two pictures,
docs/pictures/mixers_learning.svg and mixers_cost.svg (of the quick form, mixers_quick_...), and
``python -m docs.side_by_side`` writes the page of them.

``--quick``: eight mixers, two tasks with fewer steps, one seed, two lengths; five minutes on two cores.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.counted import FEATURES, HEADS, LENGTHS, layer
from benchmarks.curves import against_length

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HOME = pathlib.Path(__file__).resolve().parents[1]
PICTURES = HOME / "docs" / "pictures"
WAYS = ("forward", "training")
ROUNDS, ENOUGH = 5, 3.0
"""Runs of a program, and the seconds after which there are no more."""
QUICK: Mapping[str, Any] = {
    "mixers": (
        "attention", "linear_attention", "mamba2", "gated_delta_net", "rwkv7", "hgrn2", "neighborhood",
        "focal_modulation",
    ),
    "steps": {"digits": 150, "recall": 400},
    "seeds": (0,),
    "lengths": (256, 4096),
}  # fmt: skip
Row = dict[str, Any]


def program(mixer: Any, way: str) -> tuple[Any, tuple[Any, ...]]:
    """A pass of a mixer as a function of its parameters, its other variables and its input; and those two."""
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
    """What a pass of a mixer over a row of ``job["length"]`` tokens costs; "fault" where it takes more memory than
    there is.
    """
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


def work(most_bytes: int) -> None:
    """The process that makes rows."""
    import jax

    from benchmarks.worker import serve
    from training import comparison
    from zoo.commands import keep_compiled

    keep_compiled()
    serve(
        lambda job: comparison.run(job) if "task" in job else cost(job, most_bytes),
        jax.devices()[0].device_kind,
    )


def cost_jobs(names: Sequence[str], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Short rows first: what takes too long at one length is not tried at a greater one."""
    return [{"way": way, "mixer": name, "length": n} for n in sorted(lengths) for name in names for way in WAYS]


def curves(rows: Sequence[Row], way: str, what: str) -> dict[str, list[tuple[int, float]]]:
    """Points of each mixer: lengths, and what was measured there."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="five minutes on two cores")
    parser.add_argument("--only", help="mixers, separated by commas; default all, of the quick form eight")
    parser.add_argument("--tasks", help="separated by commas, or none; default all, of the quick form two")
    parser.add_argument("--seeds", help="default 0,1,2, of the quick form 0")
    parser.add_argument("--lengths", help=f"or none; default {','.join(map(str, LENGTHS))}, of the quick form two")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no row is begun")
    parser.add_argument("--row_seconds", type=float, default=300.0, help="after which a row counts as too long")
    parser.add_argument("--again", action="store_true", help="also rows that are there already")
    parser.add_argument("--output", type=pathlib.Path, help="folder for all files; see above where they go without")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
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
    seeds = comparison.numbers(given.seeds, "seeds") if given.seeds else QUICK["seeds"] if given.quick else (0, 1, 2)
    asked = ",".join(listed(given.lengths, QUICK["lengths"] if given.quick else LENGTHS))
    lengths = comparison.numbers(asked, "lengths") if asked else []
    jobs = cost_jobs(names, lengths)
    for seed in seeds:
        for task in tasks:
            jobs += comparison.jobs(names, [task], [seed], QUICK["steps"].get(task) if given.quick else None)
    return jobs


def measure(given: argparse.Namespace) -> None:
    """Makes the rows that are missing, and all files.

    Raises:
      ValueError: an unknown name, near ones given, or rows that there was no time for.
    """
    import jax

    from benchmarks.worker import Worker
    from training import standings

    wanted = _wanted(given)
    device = jax.devices()[0]
    folder = given.output or HOME / "benchmarks" / "results" / jax.default_backend()
    about = {
        "quick": given.quick, "rows_asked_for": len(wanted), "device": device.device_kind, "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__, "features": FEATURES, "heads": HEADS, "row_seconds": given.row_seconds,
    }  # fmt: skip
    name = "mixers_quick" if given.quick else "mixers"
    results = standings.Results(folder / f"{name}.json", about, fresh=given.again)
    worker = Worker(["benchmarks.mixers", "--work"])
    too_long = "no answer in time"

    def do(job: dict[str, Any]) -> Row:
        if "length" in job:
            for row in results.rows:
                shorter = row["job"].get("length", job["length"]) < job["length"]
                if shorter and {**row["job"], "length": job["length"]} == job and "milliseconds" not in row:
                    return {"fault": f"not tried: {row['job']['length']:,} tokens were too many"}
        row = worker.run(job, given.row_seconds)
        return {"fault": f"not done after {given.row_seconds:.0f} s"} if row.get("fault") == too_long else row

    say = (lambda _: None) if given.quiet else functools.partial(print, file=sys.stderr, flush=True)
    try:
        rows = results.make(wanted, do, say, time.monotonic() + 60 * given.minutes)
    finally:
        worker.end()
    files = [results.path, results.write_csv(), *draw(results.rows, given.output or PICTURES, name)]
    say(f"written: {', '.join(map(str, files))}")
    for task in dict.fromkeys(row["job"]["task"] for row in rows if "task" in row["job"]):
        print(f"{task}\n{standings.table(rows, task)}\n")
    if len(rows) < len(wanted):
        raise ValueError(f"{len(wanted) - len(rows)} of {len(wanted)} rows were not begun: the same command goes on")


def draw(rows: Sequence[Row], folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Writes the two pictures; those of what no row has are left out."""
    from matplotlib import rc_context

    from training import problems, standings

    tasks = [task for task in problems.PROBLEMS if any(row["job"].get("task") == task for row in rows)]
    figures = {"learning": standings.draw(rows, tasks)} if tasks else {}
    if any("milliseconds" in row for row in rows):
        figures["cost"] = draw_costs(rows)
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mixers"}):
        for what, figure in figures.items():
            figure.savefig(folder / f"{name}_{what}.svg", metadata={"Date": None})
    return [folder / f"{name}_{what}.svg" for what in figures]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command: it ends with 0 where every row is there, whatever it says, and else with 1 and a message."""
    given = _arguments().parse_args(arguments)
    if given.work:
        from training.memory import available

        work(available() // 2)
        return
    try:
        measure(given)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the rows that were done are kept, and the same command goes on")


if __name__ == "__main__":
    main()
