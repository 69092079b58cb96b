"""Vision models on this device: ours against timm's or the authors' (PyTorch eager and compiled), in one run.

``python -m benchmarks.vision --clones=FOLDER`` writes benchmarks/results/<platform>/vision.json after each row, and
keeps rows that it does not measure. The models and their peers are those of :mod:`benchmarks.vision_peers`. Both sides
have the same weights and images, float32, as many threads as there are cores, the same environment (so the same malloc
settings) and a process of their own; ours is measured before theirs and, having waited, once more after it.
Milliseconds are the least of several runs, compilation left out.

    forward         logits, in evaluation mode
    training_step   mean cross-entropy in training mode without dropout, its gradient, AdamW
    memory          MiB that training steps need at most beyond the parameters and the images: the peak of the
                    process's resident memory less what it held before the first step, in which AdamW's moments are
                    made; compiled programs and what compilation needed are in neither
    product         one matrix product by itself (1576 x 384 x 1536, of ViT-S with 8 images), in 1e9 operations a
                    second: what bounds the rest

Rows say by how much ours is faster ("times_faster"); below 1 it is slower. A model that does not run, or whose peer
does not, is a row that says so. ``--repeats=0`` prepares: weights and compiled programs are left in ``--folder``, and
logits are compared; on a machine that others use as well, only the measuring needs to be alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks.startup import peak_memory
from benchmarks.vision_peers import PEERS
from benchmarks.worker import Worker, serve

Row = dict[str, Any]
SIDES = ("ours", "eager", "compile")
RATE = 1e-4
PRODUCT = (1576, 384, 1536)
ASKED = {"forward": {"each": 0.85, "mean": 1.15}, "training_step": {"each": 0.8, "mean": 1.0}}
"""Of the families at batch 8: how many times as fast as PyTorch eager each should be, and their geometric mean."""


def least(run: Callable[[], Any], repeats: int) -> float:
    """Milliseconds of the quickest of ``repeats`` runs, or of at least two within ten seconds, after one that is not
    counted.
    """
    run()
    times: list[float] = []
    while len(times) < 2 or (len(times) < repeats and sum(times) < 10):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return round(1e3 * min(times), 2)


def rate(multiply: Callable[[], Any]) -> float:
    """Operations per second, in 1e9, of a function that computes one ``PRODUCT``."""
    return round(2e-6 * math.prod(PRODUCT) / least(multiply, 20), 1)


def sizes(name: str) -> tuple[int, int]:
    """Pixels on a side, and classes, of a model."""
    import zoo

    config: Any = zoo.variant(name).config
    return config.image_size, config.num_classes


def batch_of(name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng, (side, classes) = np.random.default_rng(0), sizes(name)
    return rng.standard_normal((size, side, side, 3), dtype=np.float32), rng.integers(0, classes, size)


def checked(logits: Any) -> list[float]:
    """A few logits, by which the two sides are compared."""
    return [float(value) for value in np.asarray(logits)[0, :5]]


def resident() -> int:
    """Bytes of memory that the process holds, with what it freed given back and the peak set to it."""
    import ctypes

    ctypes.CDLL(None).malloc_trim(0)
    return peak_memory(reset=True)


def mebibytes(bytes_: int) -> float:
    return round(bytes_ / 2**20, 1)


class Ours:
    """Our model with the weights at ``path``."""

    def __init__(self, name: str, path: str, size: int):
        import jax.numpy as jnp

        import zoo
        from layers import Dropout

        self.again: dict[str, Callable[[int], float]] = {}
        self.model: Any = zoo.create(name, weights=path, drop_path=0.0)
        for _, module in self.model.iter_modules():
            if isinstance(module, Dropout):
                module.rate = 0.0
        self.images, self.labels = map(jnp.asarray, batch_of(name, size))

    def forward(self, repeats: int) -> Row:
        import jax
        from flax import nnx

        self.model.eval()
        evaluation, state = nnx.split(self.model)
        forward = jax.jit(lambda state, images: nnx.merge(evaluation, state)(images))
        row: Row = {"logits": checked(forward(state, self.images))}
        if repeats:
            self.again = {"forward": lambda n: least(lambda: jax.block_until_ready(forward(state, self.images)), n)}
            row["forward"] = self.again["forward"](repeats)
        return row

    def training_step(self, repeats: int) -> Row:
        import jax
        import jax.numpy as jnp
        import optax
        from flax import nnx

        images, labels = self.images, self.labels
        self.model.train()
        training, params, rest = nnx.split(self.model, nnx.Param, ...)
        optimizer = optax.adamw(RATE)

        def loss(params: Any, rest: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
            merged = nnx.merge(training, params, rest, copy=True)
            value = optax.softmax_cross_entropy_with_integer_labels(merged(images), labels).mean()
            return value, nnx.state(merged, nnx.Not(nnx.Param))

        def step(params: Any, rest: Any, moments: Any, images: jax.Array, labels: jax.Array) -> Any:
            (value, rest), gradient = jax.value_and_grad(loss, has_aux=True)(params, rest, images, labels)
            updates, moments = optimizer.update(gradient, moments, params)
            return optax.apply_updates(params, updates), rest, moments, value

        begin = jax.jit(optimizer.init).lower(params).compile()
        shapes = jax.eval_shape(optimizer.init, params)
        compiled = jax.jit(step, donate_argnums=(0, 1, 2)).lower(params, rest, shapes, images, labels).compile()
        if not repeats:
            return {}
        carry = jax.block_until_ready([jax.tree.map(jnp.copy, tree) for tree in (params, rest)])
        before = resident()
        carry.append(begin(params))
        losses: list[jax.Array] = []

        def train() -> None:
            *carry[:], value = compiled(*carry, images, labels)
            losses.append(jax.block_until_ready(value))

        row: Row = {"training_step": least(train, repeats), "memory": mebibytes(peak_memory() - before)}
        self.again["training_step"] = lambda n: least(train, n)
        return row | {"losses": [round(float(value), 4) for value in losses[:3]]}

    def once_more(self, repeats: int) -> Row:
        """The times of what was measured before."""
        return {what: measure(repeats) for what, measure in self.again.items()}

    def product(self) -> Callable[[], Any]:
        import jax
        import jax.numpy as jnp

        a, b = jnp.ones(PRODUCT[:2]), jnp.ones(PRODUCT[1:])
        return lambda: jax.block_until_ready(jnp.matmul(a, b))


class Theirs:
    """Their model with the weights at ``path``."""

    def __init__(self, name: str, path: str, size: int, clones: pathlib.Path | None, compiled: bool = False):
        import torch
        from safetensors.torch import load_file

        torch.set_num_threads(os.cpu_count() or 1)
        self.model = PEERS[name].make(name, clones)
        self.model.load_state_dict(load_file(path), strict=False)
        for module in self.model.modules():  # stochastic depth and dropout are no part of the comparison
            if type(module).__name__ == "DropPath":
                module.drop_prob = 0.0
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        images, labels = batch_of(name, size)
        self.x, self.y = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)
        self.run: Any = torch.compile(self.model) if compiled else self.model

    def forward(self, repeats: int) -> Row:
        import torch

        self.model.eval()
        with torch.no_grad():
            row: Row = {"logits": checked(self.run(self.x))}
            return row | ({"forward": least(lambda: self.run(self.x), repeats)} if repeats else {})

    def training_step(self, repeats: int) -> Row:
        import torch

        if not repeats:
            return {}
        self.model.train()
        before = resident()
        optimizer = torch.optim.AdamW(self.model.parameters(), RATE, weight_decay=1e-4)
        losses: list[float] = []

        def train() -> None:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self.run(self.x), self.y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

        row: Row = {"training_step": least(train, repeats), "memory": mebibytes(peak_memory() - before)}
        return row | {"losses": [round(value, 4) for value in losses[:3]]}

    def product(self) -> Callable[[], Any]:
        import torch

        a, b = torch.ones(PRODUCT[:2]), torch.ones(PRODUCT[1:])
        return lambda: a @ b


def write_weights(name: str, path: str, clones: pathlib.Path | None) -> None:
    """Writes the weights of a freshly created peer model, including the statistics of batch norms. Matrices that are
    zero at first, such as those of some heads, are small random numbers: logits of zero would not compare the sides.
    """
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = PEERS[name].make(name, clones)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    save_file({key: value.clone().contiguous() for key, value in model.state_dict().items()}, path)


def work() -> Callable[[Row], Row]:
    """What a process of its own does: jobs of one side of one model, which it makes for the first of them."""
    made: dict[str, Any] = {}

    def do(job: Row) -> Row:
        name, path, size, repeats = (job[key] for key in ("name", "path", "size", "repeats"))
        clones = pathlib.Path(job["clones"]) if job["clones"] else None
        if job["what"] == "weights":
            write_weights(name, path, clones)
            return {}
        if not made:
            ours, compiled = job["side"] == "ours", job["side"] == "compile"
            made["side"] = Ours(name, path, size) if ours else Theirs(name, path, size, clones, compiled)
        if job["what"] == "product":
            return {"product": rate(made["side"].product())} if repeats else {}
        return dict(getattr(made["side"], job["what"])(repeats))

    return do


class Process:
    """A process for one side of one model, with the seconds that are left to it."""

    def __init__(self, side: str, name: str, path: pathlib.Path, size: int, args: argparse.Namespace):
        # What was compiled once is not compiled again.
        environment = {"JAX_COMPILATION_CACHE_DIR": str(path.parent / "compiled")}
        self.worker = Worker(["benchmarks.vision", "--work"], environment)
        self.left = self.limit = args.limit
        self.job = {"side": side, "name": name, "path": str(path), "size": size, "repeats": args.repeats}
        self.job["clones"] = str(args.clones or "")

    def do(self, *parts: str) -> Row:
        """What it finds, part after part, and the reason where it did not finish."""
        row: Row = {}
        for what in parts:
            start = time.monotonic()
            found = self.worker.run(self.job | {"what": what}, self.left)
            self.left = max(self.left - (time.monotonic() - start), 0.0)
            if fault := found.pop("fault", None):
                late = fault == "no answer in time"
                last = f"not done after {self.limit:.0f} s" if late else fault.strip().splitlines()[-1][:300]
                return row | {"stopped": last}
            row |= found
        return row


def compare(name: str, size: int, path: pathlib.Path, args: argparse.Namespace) -> Row:
    """Ours, the peer in each form, and ours once more in the process of the first time."""
    parts, others, again = ("forward", "training_step", "product"), {}, []
    ours = Process("ours", name, path, size, args)
    try:
        first = ours.do(*parts)
        for side in SIDES[1:]:
            if side in args.sides:
                process = Process(side, name, path, size, args)
                try:
                    others[side] = process.do(*parts)
                finally:
                    process.worker.end()
        if args.repeats and "stopped" not in first:
            ours.left = args.limit
            again.append({**first, **ours.do("once_more", "product")})
    finally:
        ours.worker.end()
    return combine(first, again, others)


def combine(
    first: Mapping[str, Any], again: Iterable[Mapping[str, Any]], others: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """A row of what processes found: ours, ours once more, and the other sides."""
    mine = [found for found in (first, *again) if "losses" in found] or [first]
    times = {
        what: min(found[what] for found in mine) for what in ("forward", "training_step", "memory") if what in mine[0]
    }
    row: dict[str, Any] = {"ours": times | {key: mine[0][key] for key in ("losses", "stopped") if key in mine[0]}}
    if rates := [found["product"] for found in mine if "product" in found]:
        row["ours"]["product"] = max(rates)
    for side, other in others.items():
        other = dict(other)
        logits = other.pop("logits", None)
        row[side] = other
        row[f"times_faster_than_{side}"] = {
            what: round(other[what] / mine, 2) for what, mine in times.items() if what in other and what != "memory"
        }
        if "memory" in other and "memory" in times:
            row[f"memory_of_{side}"] = round(times["memory"] / other["memory"], 2)
        if "logits" in first and (largest := max(map(abs, logits or ()), default=0.0)):
            row[side]["largest_relative_difference"] = float(
                f"{max(abs(a - b) for a, b in zip(first['logits'], logits, strict=True)) / largest:.1e}"
            )
    return row


def means(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Geometric means, over the families' rows, of how many times as fast as PyTorch eager ours is."""
    ratios = {what: [row["times_faster_than_eager"][what] for row in families(rows, what).values()] for what in ASKED}
    return {what: round(math.exp(np.log(found).mean()), 2) for what, found in ratios.items() if found}


def families(rows: Mapping[str, Mapping[str, Any]], what: str) -> dict[str, Mapping[str, Any]]:
    """The rows of the families, which the targets are for, with a ratio of ``what``."""
    return {
        name: row for name, row in rows.items() if "family" in row and what in row.get("times_faster_than_eager", {})
    }


def measured(name: str, size: int, folder: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """A row: of the family, the peer and what was measured, or of why nothing was."""
    import zoo

    peer = PEERS[name]
    about = {"family": zoo.variant(name).family, "peer": peer.named(args.clones)}
    if reason := peer.missing(args.clones):
        return {**about, "stopped": reason}
    path = folder / f"{name}.safetensors"
    if not path.exists():
        process = Process("weights", name, path, size, args)
        end = process.do("weights").get("stopped")
        process.worker.end()
        if end:
            return {**about, "stopped": f"the peer was not made: {end}"}
    return {**about, **compare(name, size, path, args), "load_average_at_end": round(os.getloadavg()[0], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(PEERS))
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[8])
    parser.add_argument("--sides", type=lambda text: text.split(","), default=["ours", "eager"], help=", ".join(SIDES))
    parser.add_argument("--repeats", type=int, default=5, help="0 prepares, and nothing is written")
    parser.add_argument(
        "--limit",
        type=float,
        default=90.0,
        help="seconds for one side of one row; what is not done then is left out, and said so",
    )
    parser.add_argument("--clones", type=pathlib.Path, help="a folder of checkouts named owner+name")
    parser.add_argument(
        "--folder", type=pathlib.Path, help="for weights and compiled programs; default a temporary one"
    )
    parser.add_argument("--output", type=pathlib.Path, help="default benchmarks/results/<platform>/vision.json")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        serve(work(), "ready")
        return
    if unknown := {*args.models} - {*PEERS}:
        sys.exit(f"error: no peer of {', '.join(sorted(unknown))}: benchmarks/vision_peers.py has those that are known")
    from importlib.metadata import version

    import jax

    output = args.output or pathlib.Path(__file__).parent / "results" / jax.default_backend() / "vision.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(output.read_text()) if output.exists() else {}
    rows: dict[str, Any] = report.get("milliseconds", {})
    about = {
        # Without "+cpu" and the like.
        "versions": {package: version(package).partition("+")[0] for package in ("jax", "torch", "timm")},
        "cores": os.cpu_count(),
        "malloc": os.environ.get("GLIBC_TUNABLES", "default"),
        "asked": ASKED,
    }
    if rows and any(report.get(key) != about[key] for key in ("versions", "cores", "malloc")):
        sys.exit(f"error: {output} has rows of another machine or of other versions: give another --output")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.models:
            for size in args.batches:
                row = measured(name, size, folder, args)
                print(f"{name}, batch {size}", json.dumps(row), flush=True)
                if args.repeats:  # after each row: what was measured outlives a run that is cut short
                    rows[f"{name}, batch {size}"] = row
                    output.write_text(json.dumps({**report, **about, "milliseconds": rows}, indent=2) + "\n")
    if args.repeats:
        print("geometric means of the families:", json.dumps(means(rows)), flush=True)


if __name__ == "__main__":
    main()
