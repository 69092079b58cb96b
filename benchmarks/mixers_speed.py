"""Recurrences and masked attention on this device, each beside PyTorch code of the same function, in one run.

``python -m benchmarks.mixers_speed [--only="ROW;ROW"]`` writes benchmarks/results/<platform>/mixers_speed.json after
each row, and keeps rows that it does not measure. 1 x 2048 tokens x 8 heads x 64, float32, the same arrays on both
sides:

    recurrences  forward and gradient beside the PyTorch code of flash-linear-attention (of the mLSTM, transformers'),
                 token by token (asked: 5 times as fast) or in chunks (1.5 times), where it has such code; and beside
                 our own reference, the paper's equation token by token in JAX under plain autodiff, of which nothing is
                 asked
    memory       the exponent with which the gradient's temporary memory grows in length, 2k to 32k (asked: 1.05)
    density      a windowed attention's time over the dense one's times the density of pairs that see each other, at
                 4,096 tokens (asked: 1.3 with the density of the blocks that the form computes, which is greater)
    constant     microseconds a token of the forward pass, from 1k to 128k tokens, which should not grow

Outputs are compared before anything is timed: a row of other numbers is an error, not a time. The rows are those of
:mod:`benchmarks.recurrences`. Put fla-core in a folder of its own, since transformers would use its kernels wherever it
is installed:

    python -m pip install --no-deps --target=FOLDER fla-core==0.6.0 && PYTHONPATH=FOLDER python -m
    benchmarks.mixers_speed
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.recurrences import HEADS, ROWS, Peer, Row, arrays, shape_of

ROUNDS, ENOUGH = 5, 20.0
"""Runs of each contestant, and the seconds after which there are no more."""
LENGTHS = (2048, 8192, 32768)
CONSTANT = (1024, 8192, 65536, 131072)
DENSITIES = (4096, 2048, 1024, 512, 256)
REFERENCE = "our reference"


def take_turns(contestants: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The least milliseconds of each contestant, called in turn, after one call that is not counted."""
    for run in contestants.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    begin = time.perf_counter()
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
        if time.perf_counter() - begin > ENOUGH:
            break
    return {name: round(min(values), 2) for name, values in times.items()}


def programs(row: Row, implementation: str | None = None) -> dict[str, Any]:
    """The forward pass and the gradient of our op, with ``implementation`` or what the dispatch chooses."""
    import jax
    import jax.numpy as jnp

    from pallas_kernels import dispatch

    def call(given: Any) -> Any:
        with dispatch.use(implementation):
            return row.ours(given)

    def loss(given: Any) -> Any:
        return jnp.sum(call(given) ** 2)

    return {"forward": jax.jit(call), "gradient": jax.jit(jax.grad(loss))}


def compare(name: str) -> dict[str, Any]:
    """Forward and gradient of ours, of our reference, and of each peer."""
    import jax

    row = ROWS[name]
    given = arrays(row.names)
    ours, here = programs(row), jax.tree.map(jax.numpy.asarray, given)
    result: dict[str, Any] = {}
    runs: dict[str, dict[str, Callable[[], Any]]] = {
        what: {"ours": lambda run=run: jax.block_until_ready(run(here))} for what, run in ours.items()
    }
    for what, run in programs(row, "reference").items():
        runs[what][REFERENCE] = lambda run=run: jax.block_until_ready(run(here))
    for what, contestants in runs.items():
        mine, plain = (jax.tree.leaves(run()) for run in contestants.values())
        for one, other in zip(mine, plain, strict=True):
            check(f"{REFERENCE}, {what}", np.asarray(one), np.asarray(other))
    asked: dict[str, float | None] = {REFERENCE: None}
    for peer in row.peers:
        import torch

        function, label = peer.load(), peer.function
        asked[label] = peer.asked

        def forward(function: Any = function, peer: Peer = peer) -> Any:
            with torch.no_grad():
                return peer.call(function, {key: torch.from_numpy(value) for key, value in given.items()})

        def gradient(function: Any = function, peer: Peer = peer) -> dict[str, Any]:
            leaves = {key: torch.from_numpy(value).requires_grad_() for key, value in given.items()}
            peer.call(function, leaves).square().sum().backward()
            return {key: leaf.grad for key, leaf in leaves.items()}

        check(label, np.asarray(runs["forward"]["ours"]()), forward().numpy())
        runs["forward"][label] = forward
        try:
            theirs = gradient()
        except RuntimeError as error:
            if "inplace" not in str(error):
                raise
            result.setdefault("no gradient", []).append(label)  # the peer overwrites what its gradient needs
            continue
        for key, value in theirs.items():
            check(f"{label}, gradient in {key}", np.asarray(runs["gradient"]["ours"]()[key]), value.numpy())
        runs["gradient"][label] = gradient
    for what, contestants in runs.items():
        times = take_turns(contestants)
        result[what] = {
            "ms": times,
            "times": {label: round(times[label] / times["ours"], 2) for label in asked if label in times},
        }
    result["asked"] = asked
    sizes = [temporary(ours["gradient"], row.names, length) for length in LENGTHS]
    result["gradient_temporary_mib"] = {length: round(size / 2**20, 1) for length, size in zip(LENGTHS, sizes)}
    result["memory_exponent"] = round(slope(LENGTHS, sizes), 3)
    return result


def check(what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    apart = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not apart < 1e-3:
        raise SystemExit(f"{what}: the outputs are not the same function's, {apart:.1e} apart")


def temporary(program: Any, names: str, length: int) -> int:
    import jax

    shapes = {name: jax.ShapeDtypeStruct(shape_of(name, length), np.float32) for name in names.split()}
    return program.lower(shapes).compile().memory_analysis().temp_size_in_bytes


def slope(x: Any, y: Any) -> float:
    """The exponent of the power law in ``x`` fitted to ``y``."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def density() -> dict[str, Any]:
    """Windowed attention compared with dense attention at 4,096 tokens: its time divided by the dense time multiplied
    by the density, of visible pairs and of computed blocks.
    """
    import jax
    import jax.numpy as jnp

    import pallas_kernels
    from primitives import operations

    length = DENSITIES[0]
    here = jax.tree.map(jnp.asarray, arrays("q k v", length))

    def call(window: int | None, causal: bool = True) -> Callable[[Any], Any]:
        sides = None if window is None else (window - 1, 0)
        # Layers know their keys and values to be finite.
        options = {"causal": causal, "window": sides, "finite": True}
        return lambda given: pallas_kernels.attention(given["q"], given["k"], given["v"], **options)

    result: dict[str, Any] = {}
    forms = {"dense": call(None, causal=False), **{str(window): call(window) for window in DENSITIES[1:]}}
    for what, wrap in (
        ("forward", lambda f: f),
        ("gradient", lambda f: jax.grad(lambda given: jnp.sum(f(given) ** 2))),
    ):
        runs = {name: jax.jit(wrap(form)) for name, form in forms.items()}
        times = take_turns({name: lambda run=run: jax.block_until_ready(run(here)) for name, run in runs.items()})
        result[what] = {"ms": times}
        whole = operations.count(wrap(forms["dense"]), here).matmul_flops
        for window in DENSITIES[1:]:
            pairs = window * (length - (window - 1) / 2) / length**2
            blocks = operations.count(wrap(forms[str(window)]), here).matmul_flops / whole
            for name, part in (("density", pairs), ("density of the blocks computed", blocks)):
                result[what][f"window {window}, over {name} times dense"] = round(
                    times[str(window)] / (times["dense"] * part), 2
                )
    return result


def constant() -> dict[str, Any]:
    """Lightning attention's forward pass: microseconds a token, 1k to 128k tokens."""
    import jax
    import jax.numpy as jnp

    import pallas_kernels

    decay = jnp.asarray(-np.exp2(-np.arange(1, HEADS + 1, dtype=np.float32)))
    run = jax.jit(lambda g: pallas_kernels.linear_attention(g["q"], g["k"], g["v"], decay=decay))
    micro = {}
    for length in CONSTANT:
        here = jax.tree.map(jnp.asarray, arrays("q k v", length))
        micro[length] = round(
            1e3 * take_turns({"ours": lambda here=here: jax.block_until_ready(run(here))})["ours"] / length, 3
        )
    return {
        "microseconds_a_token": micro,
        "time_exponent": round(slope(list(micro), [n * t for n, t in micro.items()]), 3),
    }


OTHERS: dict[str, Callable[[], dict[str, Any]]] = {"window": density, "lightning_attention": constant}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"rows, separated by semicolons, of: {'; '.join([*ROWS, *OTHERS])}")
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(";") if name.strip()] or [*ROWS, *OTHERS]
    if unknown := [name for name in names if name not in {**ROWS, **OTHERS}]:
        parser.error(f"no row {unknown[0]!r}; there are: {'; '.join([*ROWS, *OTHERS])}")
    import jax

    path = pathlib.Path(__file__).parent / "results" / jax.default_backend() / "mixers_speed.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    for name in names:
        result = compare(name) if name in ROWS else OTHERS[name]()
        packages = ["jax"]
        if name in ROWS and ROWS[name].peers:
            fla = ROWS[name].peers[0].module.startswith("fla.")
            packages += ["torch", "fla-core" if fla else "transformers"]
        versions = {package: importlib.metadata.version(package) for package in packages}
        load = round(os.getloadavg()[0], 1)
        report["rows"][name] = {**result, "versions": versions, "cores": os.cpu_count(), "load_average_at_end": load}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
        print(name, json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
