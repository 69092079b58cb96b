"""The Hopper kernels on a Hopper GPU, in one run of ten minutes: right first, then how fast, beside their peers.

``python -m benchmarks.gpu`` on a machine with one H100 or H200 writes benchmarks/results/<h100 or h200>/*.json: what the device reaches
(``ceilings``), every kernel against float64 (``correctness``), and for each op milliseconds forward and of outputs with all gradients,
at the shapes of published tables, beside cuDNN, PyTorch, flash-linear-attention and mamba-ssm where they can be imported, and XLA's
form of the same op. **No GPU was to be had when this was written: there are no such files yet, and the kernels have been compiled and
interpreted, not run.** ``--dry --output=FOLDER`` runs all of it with tiny inputs on a CPU, XLA standing in for the kernels.

Times are of calls queued one behind the other on random inputs that rotate beyond the L2, until the device is done; the contestants take
turns, in one order and then the other, and the median counts. A call shorter than ``ceilings.call_ms``, which is what an empty one takes,
is not told apart from it. ``share_of_floor`` is the time that the products, exponentials or bytes of the op need at the measured ceilings, over the
time taken; a peer that is not there is named with the reason. A kernel that is wrong is not timed.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory beside JAX

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels
from benchmarks import gpu_peers
from benchmarks.gpu_problems import Problem, problems
from pallas_kernels import dispatch
from pallas_kernels.dispatch import OPS

L2_BYTES = 64 * 2**20
ROUNDS = 5
# A result in bfloat16 is rounded by 2^-9 itself; weights, gradients and states on the way are rounded before.
TOLERANCE = 2.0**-6
NARROW = {"attention": ("q", "k", "v"), "linear_attention": ("q", "k", "v"), "delta_rule": ("q", "k", "v"), "selective_scan": ()}


class Clock:
    """Times calls on the device, and knows when the run must end."""

    def __init__(self, minutes: float, least_ms: float):
        self.end, self.least_ms = time.monotonic() + 60 * minutes, least_ms

    def over(self) -> bool:
        return time.monotonic() > self.end

    def sample(self, call: Callable[[int], Any], wait: Callable[[Any], None], repeats: int) -> float:
        """Milliseconds a call, ``repeats`` of them queued."""
        start = time.perf_counter()
        last = None
        for index in range(repeats):
            last = call(index)
        wait(last)
        return (time.perf_counter() - start) * 1e3 / repeats

    def compare(self, contestants: dict[str, tuple[Callable[[int], Any], Callable[[Any], None]]]) -> dict[str, float]:
        """Median milliseconds of each, in turns."""
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
    """What this device reaches: TFLOP/s of a bfloat16 product, TB/s of a copy, exponentials a second, and what an empty call takes."""
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


def evaluate(op: str, options: dict[str, Any], arrays: dict[str, jax.Array], implementation: str) -> list[tuple[str, jax.Array]]:
    """Outputs and gradients by name, as the timed functions compute them."""
    outputs, gradients = jax.jit(gradient(op, options, implementation))(arrays)
    named = [(f"output {i}", x) for i, x in enumerate(jax.tree.leaves(outputs))]
    return named + sorted(gradients.items())


def forward(op: str, options: dict[str, Any], implementation: str | None) -> Callable[[dict[str, jax.Array]], Any]:
    return lambda arrays: getattr(pallas_kernels, op)(**arrays, **options, implementation=implementation)


def gradient(op: str, options: dict[str, Any], implementation: str | None) -> Callable[[dict[str, jax.Array]], Any]:
    """Outputs, and gradients of all floating arrays under cotangents that depend on the outputs' places."""

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


def errors(op: str, options: dict[str, Any], made: dict[str, np.ndarray], ours: str, narrow: tuple[str, ...], truth: str) -> dict[str, float]:
    """max|a - b| / max|b| of each output and gradient, b in float64 by ``truth``; infinite where a number is not one, or an infinity is missed."""
    floating = {n for n, x in made.items() if np.issubdtype(x.dtype, np.floating)}
    arrays = {n: jnp.asarray(x, (jnp.bfloat16 if n in narrow else jnp.float32) if n in floating else x.dtype) for n, x in made.items()}
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


def correctness(clock: Clock, ours: str, dry: bool) -> list[dict[str, Any]]:
    """Every problem that will be timed, then every shared case that the kernels serve; those that time did not suffice for are named."""
    rows: list[dict[str, Any]] = []

    def check(op: str, name: str, made: dict[str, np.ndarray], options: dict[str, Any], truth: str) -> None:
        if clock.over():
            rows.append({"op": op, "case": name, "not_reached": True})
            return
        try:
            found = errors(op, options, made, ours, NARROW[op], truth)
        except dispatch.Refused as refused:
            rows.append({"op": op, "case": name, "refused": str(refused.reasons)})
            return
        except Exception as fault:  # a kernel that does not run is a finding, and no reason to lose the others
            rows.append({"op": op, "case": name, "fault": f"{type(fault).__name__}: {str(fault)[:300]}", "right": False})
            return
        rows.append({"op": op, "case": name, "errors": found, "right": max(found.values()) <= TOLERANCE})

    for problem in problems(dry):
        check(problem.op, problem.name, problem.arrays(1), problem.options, "xla")
    for op in OPS.values():
        for case in op.cases[:1] if dry else op.cases:
            check(op.name, case.name, case.arrays(np.random.default_rng(0)), case.options, "reference")
    return rows


def timed(clock: Clock, problem: Problem, ours: str, reached: dict[str, float]) -> dict[str, Any]:
    """A problem's row: each contestant's milliseconds, ratios to the best peer, share of the floor."""
    made = problem.arrays(problem.batch)
    narrow = NARROW[problem.op]
    one = {n: jnp.asarray(x, jnp.bfloat16 if n in narrow else jnp.float32) for n, x in made.items()}
    copies = max(2, -(-2 * L2_BYTES // sum(x.nbytes for x in one.values()))) if ours == "mosaic_gpu" else 2
    inputs = [one] + [jax.tree.map(lambda x, i=i: jnp.roll(x, i + 1, axis=1), one) for i in range(copies - 1)]
    row: dict[str, Any] = {"op": problem.op, "problem": problem.name, "shapes": {n: list(x.shape) for n, x in one.items()}, "absent": {}}
    for way, build in (("forward", forward), ("gradient", gradient)):
        contestants: dict[str, tuple[Callable[[int], Any], Callable[[Any], None]]] = {}
        runs = {name: jax.jit(build(problem.op, problem.options, name)) for name in {ours, "xla"}}
        for label, name in (("ours", ours), ("xla", "xla")):
            contestants[label] = (functools.partial(lambda run, i: run(inputs[i % len(inputs)]), runs[name]), jax.block_until_ready)
        for name, make in gpu_peers.PEERS.get(problem.op, {}).items():
            try:
                contestants[name] = make(problem, inputs, way)
            except Exception as reason:
                row["absent"][f"{name}, {way}"] = f"{type(reason).__name__}: {str(reason)[:200]}"
        times = clock.compare(_that_run(contestants, row["absent"], way))
        peers = {name: ms for name, ms in times.items() if name != "ours"}
        best = min(peers, key=peers.__getitem__)
        factor = 1.0 if way == "forward" else problem.gradient_factor
        floor = max(
            factor * problem.flops / reached["tflops_bf16"] / 1e9,
            factor * problem.exponentials / reached["exponentials_per_second"] * 1e3,
            (1.0 if way == "forward" else 3.0) * problem.bytes / reached["tbytes_per_second"] / 1e9,
        )
        row[way] = {
            "ms": times, "best_peer": best, "speed_over_best_peer": peers[best] / times["ours"],
            "floor_ms": floor, "share_of_floor": floor / times["ours"], "tflops": factor * problem.flops / times["ours"] / 1e9,
        }  # fmt: skip
    return row


def _that_run(contestants: dict[str, Any], absent: dict[str, str], way: str) -> dict[str, Any]:
    """The contestants whose first call comes back; the others are told as absent."""
    running = {}
    for name, (call, wait) in contestants.items():
        try:
            wait(call(0))
            running[name] = (call, wait)
        except Exception as reason:
            if name in ("ours", "xla"):
                raise
            absent[f"{name}, {way}"] = f"{type(reason).__name__}: {str(reason)[:200]}"
    return running


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing new is begun")
    parser.add_argument("--untimed", action="store_true", help="ceilings and correctness alone, of all cases")
    parser.add_argument("--dry", action="store_true", help="tiny inputs on any device, XLA's form in the kernels' place")
    parser.add_argument("--output", type=pathlib.Path, help="folder; benchmarks/results/<device> by default")
    given = parser.parse_args(arguments)
    kind = jax.devices()[0].device_kind.lower()
    device = next((name for name in ("h200", "h100") if name in kind), None)
    if device is None and not given.dry:
        raise SystemExit(f"benchmarks.gpu: needs an H100 or H200, this is {kind!r}; --dry --output=FOLDER tries the script")
    if given.dry and given.output is None:
        raise SystemExit("benchmarks.gpu: a dry run's figures mean nothing: name a folder for them with --output")
    folder = given.output or pathlib.Path(__file__).parent / "results" / str(device)
    folder.mkdir(parents=True, exist_ok=True)
    head = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "dry": given.dry, "peers": gpu_peers.versions()}

    def write(name: str, content: Any) -> None:
        (folder / f"{name}.json").write_text(json.dumps({**head, name: content}, indent=1) + "\n")

    ours = "xla" if given.dry else "mosaic_gpu"
    clock = Clock(given.minutes, 1.0 if given.dry else 50.0)
    reached = ceilings(clock, 256 if given.dry else 8192)
    write("ceilings", reached)
    # Compiling for each of the many small cases takes longer than running it: times come first, the rest has a run of its own.
    checked = correctness(Clock(given.minutes * (1.0 if given.untimed else 0.4), 1.0), ours, given.dry)
    write("correctness", checked)
    wrong = {(row["op"], row["case"]) for row in checked if row.get("right") is False}
    rows: dict[str, list[dict[str, Any]]] = {}
    for problem in () if given.untimed else problems(given.dry):
        if clock.over():
            print(f"no time left for {problem.op}, {problem.name}")
            continue
        try:
            skip = (problem.op, problem.name) in wrong
            row = {"op": problem.op, "problem": problem.name, "wrong": True} if skip else timed(clock, problem, ours, reached)
        except Exception as fault:
            row = {"op": problem.op, "problem": problem.name, "fault": f"{type(fault).__name__}: {str(fault)[:300]}"}
        rows.setdefault(problem.op, []).append(row)
        write(problem.op, rows[problem.op])
        print(json.dumps(row), flush=True)
    print(f"wrong: {sorted(wrong)}")


if __name__ == "__main__":
    main()
