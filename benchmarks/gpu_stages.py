"""The stages of :mod:`benchmarks.gpu`, each of which starts worker processes that compute one row at a time."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import json
import math
import os
import pathlib
import queue
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

# Several processes share the device, and PyTorch needs memory besides JAX.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels
from benchmarks import gpu_peers, worker
from benchmarks.gpu_peers import Contestant
from benchmarks.gpu_problems import Problem, problems
from pallas_kernels import dispatch
from pallas_kernels.dispatch import OPS

L2_BYTES = 64 * 2**20
ROUNDS = 5
# A result in bfloat16 is rounded by 2^-9 itself; weights, gradients and states on the way are rounded before.
TOLERANCE = 2.0**-6
NARROW = {
    "attention": ("q", "k", "v"),
    "linear_attention": ("q", "k", "v"),
    "delta_rule": ("q", "k", "v"),
    "selective_scan": (),
    "neighborhood_attention": ("q", "k", "v"),
}
WORST_FIRST = ("delta_rule", "linear_attention", "selective_scan", "neighborhood_attention", "attention")
ROW_SECONDS = 75.0  # compiling included; beyond it a kernel counts as hanging

Job = dict[str, Any]


class Clock:
    """Times calls on the device."""

    def __init__(self, least_ms: float):
        self.least_ms = least_ms

    def sample(self, call: Callable[[int], Any], wait: Callable[[Any], None], repeats: int) -> float:
        """Milliseconds per call, with ``repeats`` calls queued."""
        start = time.perf_counter()
        last = None
        for index in range(repeats):
            last = call(index)
        wait(last)
        return (time.perf_counter() - start) * 1e3 / repeats

    def compare(self, contestants: dict[str, Contestant]) -> dict[str, float]:
        """Median milliseconds of each contestant, taking turns."""
        repeats = {}
        for name, (call, wait) in contestants.items():
            for _ in range(2):  # compiles, and tunes where a peer tunes itself
                wait(call(0))
            repeats[name] = max(2, math.ceil(self.least_ms / max(self.sample(call, wait, 2), 1e-3)))
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(ROUNDS):
            for name in list(contestants)[:: 1 if turn % 2 == 0 else -1]:
                times[name].append(self.sample(*contestants[name], repeats[name]))
        return {name: statistics.median(each) for name, each in times.items()}


def ceilings(clock: Clock, size: int) -> dict[str, float]:
    """What this device reaches: TFLOP/s of a bfloat16 product, TB/s of a copy, exponentials per second, and the time of
    an empty call.
    """
    key = jax.random.key(0)
    a, b = (jax.random.normal(k, (size, size), jnp.bfloat16) for k in jax.random.split(key))
    product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.bfloat16))
    wide = jax.random.normal(key, (size * size * 4,), jnp.bfloat16)
    copy = jax.jit(lambda x: x + jnp.bfloat16(1))
    exponentials = 256

    @jax.jit
    def chain(x: jax.Array) -> jax.Array:
        for _ in range(exponentials):
            x = jnp.exp2(-x)
        return x

    line = jax.random.uniform(key, (size * size // 8,), jnp.float32)
    empty = jax.jit(lambda x: x)
    one = jnp.zeros(8)
    wait = jax.block_until_ready
    times = clock.compare(
        {
            "product": (lambda _: product(a, b), wait),
            "copy": (lambda _: copy(wide), wait),
            "chain": (lambda _: chain(line), wait),
            "empty": (lambda _: empty(one), wait),
        }
    )
    return {
        "tflops_bf16": 2 * size**3 / times["product"] / 1e9,
        "tbytes_per_second": 2 * wide.nbytes / times["copy"] / 1e9,
        "exponentials_per_second": line.size * exponentials / times["chain"] * 1e3,
        "call_ms": times["empty"],
    }


def evaluate(
    op: str, options: dict[str, Any], arrays: dict[str, jax.Array], implementation: str
) -> list[tuple[str, jax.Array]]:
    """Outputs and gradients by name, as the timed functions compute them."""
    outputs, gradients = jax.jit(gradient(op, options, implementation))(arrays)
    named = [(f"output {i}", x) for i, x in enumerate(jax.tree.leaves(outputs))]
    return named + sorted(gradients.items())


def forward(op: str, options: dict[str, Any], implementation: str | None) -> Callable[[dict[str, jax.Array]], Any]:
    return lambda arrays: getattr(pallas_kernels, op)(**arrays, **options, implementation=implementation)


def gradient(op: str, options: dict[str, Any], implementation: str | None) -> Callable[[dict[str, jax.Array]], Any]:
    """A function that returns the outputs, and the gradients of all floating-point arrays for fixed cotangents that
    vary by position.
    """

    def both(arrays: dict[str, jax.Array]) -> Any:
        floating = {n: x for n, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        rest = {n: x for n, x in arrays.items() if n not in floating}
        outputs, pull = jax.vjp(lambda floating: forward(op, options, implementation)({**floating, **rest}), floating)
        return outputs, pull(jax.tree.map(_cotangent, outputs))[0]

    return both


def _cotangent(x: jax.Array) -> jax.Array:
    """Fixed numbers between -1 and 1, the same in every dtype."""
    places = jax.lax.broadcasted_iota(jnp.int32, (x.size, 1), 0).reshape(x.shape)
    return ((places * 37 % 256).astype(jnp.float32) / 128 - 1).astype(x.dtype)


def errors(
    op: str, options: dict[str, Any], made: dict[str, np.ndarray], ours: str, narrow: tuple[str, ...], truth: str
) -> dict[str, float]:
    """max|a - b| / max|b| of each output and gradient, with b in float64 by ``truth``; infinite where ours has a NaN or
    misses an infinity.
    """
    floating = {n for n, x in made.items() if np.issubdtype(x.dtype, np.floating)}
    arrays = {
        n: jnp.asarray(x, (jnp.bfloat16 if n in narrow else jnp.float32) if n in floating else x.dtype)
        for n, x in made.items()
    }
    got = evaluate(op, options, arrays, ours)
    with jax.enable_x64(True):
        exact = {n: x.astype(jnp.float64) if n in floating else x for n, x in arrays.items()}
        want = [(name, np.asarray(x)) for name, x in evaluate(op, options, exact, truth)]
    found = {}
    for (name, a), (_, b) in zip(got, want, strict=True):
        narrow_a, finite = np.asarray(a, np.float64), np.isfinite(b)
        same = np.array_equal(narrow_a[~finite], b[~finite]) and bool(np.isfinite(narrow_a[finite]).all())
        difference = float(np.max(np.abs(narrow_a[finite] - b[finite]), initial=0.0))
        found[name] = difference / max(float(np.max(np.abs(b[finite]), initial=0.0)), 1e-30) if same else math.inf
    return found


def correctness_jobs(dry: bool) -> list[Job]:
    """Every problem that is timed, then every shared case, with the ops in the order of :data:`WORST_FIRST`."""
    jobs = [{"op": problem.op, "problem": problem.name} for problem in problems(dry)]
    jobs.sort(key=lambda job: WORST_FIRST.index(job["op"]))
    for op in (OPS[name] for name in WORST_FIRST):
        jobs += [{"op": op.name, "case": case.name} for case in (op.cases[:1] if dry else op.cases)]
    return jobs


def checked(job: Job, ours: str, dry: bool) -> dict[str, Any]:
    """One row of correctness: errors by output and gradient, or why there are none."""
    if "problem" in job:
        problem = _problem(job, dry)
        made, options, truth = problem.arrays(1), problem.options, "xla"
    else:
        case = next(case for case in OPS[job["op"]].cases if case.name == job["case"])
        made, options, truth = case.arrays(np.random.default_rng(0)), case.options, "reference"
    try:
        found = errors(job["op"], options, made, ours, NARROW[job["op"]], truth)
    except dispatch.Refused as refused:
        return {"refused": dict(refused.reasons)}
    return {"errors": found, "right": max(found.values()) <= TOLERANCE}


def _problem(job: Job, dry: bool) -> Problem:
    return next(problem for problem in problems(dry) if (problem.op, problem.name) == (job["op"], job["problem"]))


@functools.lru_cache(1)  # both ways of a problem follow one another
def _inputs(op: str, problem: str, ours: str, dry: bool) -> list[dict[str, jax.Array]]:
    """The timed problem's arrays and copies with other contents, which together exceed the L2 cache."""
    chosen = _problem({"op": op, "problem": problem}, dry)
    one = {
        n: jnp.asarray(x, jnp.bfloat16 if n in NARROW[op] else jnp.float32)
        for n, x in chosen.arrays(chosen.batch).items()
    }
    copies = max(2, -(-2 * L2_BYTES // sum(x.nbytes for x in one.values()))) if ours == "mosaic_gpu" else 2
    return [one] + [jax.tree.map(lambda x, i=i: jnp.roll(x, i + 1, axis=1), one) for i in range(copies - 1)]


def contestants(job: Job, way: str, ours: str, dry: bool) -> tuple[dict[str, Contestant], dict[str, str]]:
    """The calls that run, by name, each called once; and the reasons why others in the job's list do not run."""
    problem = _problem(job, dry)
    inputs = _inputs(job["op"], job["problem"], ours, dry)
    build = forward if way == "forward" else gradient
    running, absent = {}, {}
    for name in job["contestants"]:
        try:
            if name in ("ours", "xla"):
                run = jax.jit(build(problem.op, problem.options, ours if name == "ours" else "xla"))
                call, wait = (lambda i, run=run: run(inputs[i % len(inputs)])), jax.block_until_ready
            else:
                call, wait = gpu_peers.PEERS[problem.op][name](problem, inputs, way)
            wait(call(0))
            running[name] = call, wait
        except Exception as reason:
            if name == "ours":
                raise
            absent[name] = f"{type(reason).__name__}: {str(reason)[:200]}"
    return running, absent


def prepared(job: Job, ours: str, dry: bool) -> dict[str, Any]:
    """Compiles some of a problem's contestants, so that the timing process finds the programs in the caches on disk."""
    gpu_peers.tune_side_by_side()
    return {"absent": {way: contestants(job, way, ours, dry)[1] for way in job["ways"]}}


def timed(job: Job, ours: str, dry: bool, clock: Clock, reached: dict[str, float]) -> dict[str, Any]:
    """A problem's row: each contestant's milliseconds, the ratio to the best peer, and the share of the floor."""
    problem, way = _problem(job, dry), job["way"]
    running, absent = contestants(job, way, ours, dry)
    times = clock.compare(running)
    peers = {name: ms for name, ms in times.items() if name != "ours"}
    best = min(peers, key=peers.__getitem__)
    factor = 1.0 if way == "forward" else problem.gradient_factor
    floor = max(
        factor * problem.flops / reached["tflops_bf16"] / 1e9,
        factor * problem.exponentials / reached["exponentials_per_second"] * 1e3,
        (1.0 if way == "forward" else 3.0) * problem.bytes / reached["tbytes_per_second"] / 1e9,
    )
    return {
        "ms": times, "best_peer": best, "speed_over_best_peer": peers[best] / times["ours"], "floor_ms": floor,
        "share_of_floor": floor / times["ours"], "tflops": factor * problem.flops / times["ours"] / 1e9,
        "absent": job["absent"] | absent,
    }  # fmt: skip


def done(job: Job, dry: bool) -> dict[str, Any]:
    """The row of a job."""
    ours, clock = "xla" if dry else "mosaic_gpu", Clock(1.0 if dry else 50.0)
    match job["stage"]:
        case "correct":
            return checked(job, ours, dry)
        case "prepare":
            return prepared(job, ours, dry)
        case "ceilings":
            return ceilings(clock, 256 if dry else 8192)
        case stage:
            assert stage == "time"
            return timed(job, ours, dry, clock, job["reached"])


def work(dry: bool) -> None:
    """A worker: reads jobs from standard input, writes rows to standard output."""
    worker.serve(functools.partial(done, dry=dry), jax.devices()[0].device_kind)


class Worker(worker.Worker):
    """A process that does jobs; a kernel that it does not finish counts as not right."""

    def __init__(self, dry: bool, environment: dict[str, str]):
        super().__init__(["benchmarks.gpu", "work", *(["--dry"] if dry else [])], environment)

    def run(self, job: Job, seconds: float) -> dict[str, Any]:
        row = super().run(job, seconds)
        return {**row, "right": False} if "fault" in row else row


def spread(
    jobs: list[dict[str, Any]], workers: int, dry: bool, end: float, environment: dict[str, str]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Jobs with their rows as they finish, from several processes; rows that there was no time for are marked so."""
    waiting, done = queue.SimpleQueue[dict[str, Any]](), queue.SimpleQueue[tuple[dict[str, Any], dict[str, Any]]]()
    for job in jobs:
        waiting.put(job)

    def serve() -> None:
        process = Worker(dry, environment)
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                break
            left = end - time.monotonic()
            limit = left if job.get("patient") else min(ROW_SECONDS, left + 10)
            done.put((job, process.run(job, limit) if left > 0 else {"not_reached": True}))
        process.end()

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for _ in range(workers):
            pool.submit(serve)
        for _ in jobs:
            yield done.get()


class Report:
    """The files of one device, rewritten after each row; rows from another version of JAX or an earlier run are
    replaced by name.
    """

    def __init__(self, folder: pathlib.Path, dry: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.head = {
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "dry": dry,
            "peers": gpu_peers.versions(),
        }

    def read(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / f"{name}.json"
        return list(json.loads(path.read_text())[name]) if path.exists() else []

    def write(self, name: str, content: Any) -> None:
        (self.folder / f"{name}.json").write_text(json.dumps({**self.head, name: content}, indent=1) + "\n")


def correct(report: Report, only: str, workers: int, dry: bool, end: float) -> None:
    """The correctness stage."""
    jobs = [job for job in correctness_jobs(dry) if _chosen("/".join(job.values()), only)]
    rows = {_name(row): row for row in report.read("correctness")}
    quick = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"}  # the truth need not be fast
    for job, row in spread([{**job, "stage": "correct"} for job in jobs], workers, dry, end, quick):
        del job["stage"]
        rows[_name(job)] = {**job, **row}
        report.write("correctness", [rows[_name(job)] for job in correctness_jobs(dry) if _name(job) in rows])
        if not row.get("right") and "refused" not in row:
            print(json.dumps({**job, **row}), flush=True)
    counts = {key: sum(key in row for row in rows.values()) for key in ("refused", "fault", "not_reached")}
    right = sum(row.get("right") is True for row in rows.values())
    print(f"right {right}, wrong {sum('errors' in row and not row['right'] for row in rows.values())}, {counts}")


def _name(job: dict[str, Any]) -> tuple[str, str, str]:
    return job["op"], job.get("problem", ""), job.get("case", "")


def _chosen(name: str, only: str) -> bool:
    return any(part in name for part in only.split(","))


def names(op: str) -> list[str]:
    """Names of all contestants of an op."""
    return ["ours", "xla", *gpu_peers.PEERS[op]]


def preparations(jobs: list[Job]) -> list[Job]:
    """The jobs that compile the contestants of ``jobs``: first those that take long, by problem, because both passes
    share kernels; then the others of each job.
    """
    ways: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        ways.setdefault((job["op"], job["problem"]), []).append(job["way"])
    found = [{"op": op, "problem": problem, "ways": both, "contestants": [name], "patient": True}
             for (op, problem), both in ways.items() for name in names(op) if name in gpu_peers.SLOW]  # fmt: skip
    for job in jobs:
        quick = [name for name in names(job["op"]) if name not in gpu_peers.SLOW]
        found.append(
            {"op": job["op"], "problem": job["problem"], "ways": [job["way"]], "contestants": quick, "patient": False}
        )
    return [{**job, "stage": "prepare"} for job in found]


def measure(report: Report, only: str, workers: int, dry: bool, end: float) -> None:
    """The timing stage."""
    wrong = {_name(row) for row in report.read("correctness") if row.get("right") is False}
    ways = ("forward", "gradient")
    chosen = [problem for problem in problems(dry) if _chosen(f"{problem.op}/{problem.name}", only)]
    jobs: list[Job] = [
        {"op": p.op, "problem": p.name, "way": way} for p in chosen if (p.op, p.name, "") not in wrong for way in ways
    ]
    caches = tempfile.mkdtemp()
    with_caches = {
        "JAX_COMPILATION_CACHE_DIR": caches,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TRITON_CACHE_DIR": f"{caches}/triton",
    }
    half = (end + time.monotonic()) / 2
    absent: dict[tuple[str, str, str], dict[str, str]] = collections.defaultdict(dict)
    for job, row in spread(preparations(jobs), workers, dry, half, with_caches):
        late = dict.fromkeys(job["contestants"], row.get("fault", "compiling had no time")) if job["patient"] else {}
        for way in job["ways"]:
            absent[job["op"], job["problem"], way] |= row.get("absent", {}).get(way, late)
        if "fault" in row:
            print(json.dumps({**job, **row}), flush=True)
    process = Worker(dry, with_caches)
    reached = process.run({"stage": "ceilings"}, ROW_SECONDS)
    report.write("ceilings", reached)
    rows: dict[str, dict[str, dict[str, Any]]] = {
        op: {row["problem"]: row for row in report.read(op)} for op in WORST_FIRST
    }
    for problem in chosen:
        if (problem.op, problem.name, "") in wrong:
            rows[problem.op][problem.name] = {"op": problem.op, "problem": problem.name, "wrong": True}
            report.write(problem.op, list(rows[problem.op].values()))
    for job in jobs:
        left = end - time.monotonic()
        missing = absent[job["op"], job["problem"], job["way"]]
        wanted = {"contestants": [name for name in names(job["op"]) if name not in missing], "absent": missing}
        task = {**job, **wanted, "stage": "time", "reached": reached}
        row = process.run(task, min(ROW_SECONDS, left + 10)) if left > 0 else {"not_reached": True}
        problem = _problem(job, dry)
        whole = rows[job["op"]].setdefault(job["problem"], {"op": job["op"], "problem": job["problem"]})
        whole["shapes"] = {n: [*([] if n == "A" else [problem.batch]), *shape] for n, shape in problem.shapes.items()}
        whole.pop("wrong", None)
        whole[job["way"]] = row
        report.write(job["op"], list(rows[job["op"]].values()))
        brief = {
            key: row[key]
            for key in ("ms", "speed_over_best_peer", "share_of_floor", "fault", "not_reached")
            if key in row
        }
        print(json.dumps({**job, **brief}), flush=True)
    process.end()
