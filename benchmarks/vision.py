"""Vision models on this device: ours against timm's (PyTorch eager and compiled), in one run.

``python -m benchmarks.vision`` writes benchmarks/results/<platform>/vision.json. Both sides have the same weights and
images, float32, as many threads as there are cores, the same environment (so the same malloc settings) and a process of
their own; ours is measured before and after theirs. Milliseconds are the least of several runs, compilation left out.

    forward         logits, in evaluation mode
    training_step   mean cross-entropy in training mode without dropout, its gradient, AdamW
    product         one matrix product by itself (1576 x 384 x 1536, of ViT-S with 8 images), in 1e9 operations a
                    second: what bounds the rest

BiFormer is not in timm: ``--biformer=CLONE`` is a checkout of its authors' repository; without it the row is left out.
Rows say by how much ours is faster ("times_faster"); below 1 it is slower.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

MODELS = {
    "vit_small_patch16_224": "vit_small_patch16_224",
    "deit_tiny_patch16_224": "deit_tiny_patch16_224",
    "maxvit_tiny": "maxvit_tiny_tf_224",
    "biformer_tiny": "biformer_tiny",
}
"""Our names, and theirs."""
SIDES = ("ours", "eager", "compile")
RATE = 1e-4
PRODUCT = (1576, 384, 1536)


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


def batch_of(size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((size, 224, 224, 3), dtype=np.float32), rng.integers(0, 1000, size)


def checked(logits: Any) -> list[float]:
    """A few logits, by which the two sides are compared."""
    return [float(value) for value in np.asarray(logits)[0, :5]]


def ours(name: str, path: str, size: int, repeats: int) -> dict[str, Any]:
    """Times of our model with the weights at ``path``."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    import zoo

    model = zoo.create(name, weights=path, drop_path=0.0)
    images, labels = map(jnp.asarray, batch_of(size))
    model.eval()
    evaluation, state = nnx.split(model)
    forward = jax.jit(lambda state, images: nnx.merge(evaluation, state)(images))
    row: dict[str, Any] = {"logits": checked(forward(state, images))}
    row["forward"] = least(lambda: jax.block_until_ready(forward(state, images)), repeats)
    model.train()
    training, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.adamw(RATE)

    def loss(params: Any, rest: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        merged = nnx.merge(training, params, rest, copy=True)
        value = optax.softmax_cross_entropy_with_integer_labels(merged(images), labels).mean()
        return value, nnx.state(merged, nnx.Not(nnx.Param))

    def step(params: Any, rest: Any, moments: Any, images: jax.Array, labels: jax.Array) -> Any:
        (value, rest), gradient = jax.value_and_grad(loss, has_aux=True)(params, rest, images, labels)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), rest, moments, value

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))
    carry = [jax.tree.map(jnp.copy, tree) for tree in (params, rest)] + [jax.jit(optimizer.init)(params)]
    losses: list[jax.Array] = []

    def train() -> None:
        *carry[:], value = compiled(*carry, images, labels)
        losses.append(jax.block_until_ready(value))

    row["training_step"] = least(train, repeats)
    row["losses"] = [round(float(value), 4) for value in losses[:3]]
    a, b = jnp.ones(PRODUCT[:2]), jnp.ones(PRODUCT[1:])
    row["product"] = rate(lambda: jax.block_until_ready(jnp.matmul(a, b)))
    return row


def reference(name: str, clone: str) -> Any:
    """The peer's model."""
    if name == "biformer_tiny":
        from tests.references.biformer import authors

        return authors(pathlib.Path(clone)).biformer_tiny()
    from tests.references.live import timm

    return timm.create_model(MODELS[name])


def theirs(name: str, path: str, size: int, repeats: int, clone: str, compiled: bool) -> dict[str, Any]:
    """Times of their model with the weights at ``path``."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(os.cpu_count() or 1)
    model = reference(name, clone)
    model.load_state_dict(load_file(path), strict=False)
    for module in model.modules():  # stochastic depth is no part of the comparison
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    images, labels = batch_of(size)
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)
    run = torch.compile(model) if compiled else model
    model.eval()
    with torch.no_grad():
        row: dict[str, Any] = {"logits": checked(run(x))}
        row["forward"] = least(lambda: run(x), repeats)
    print(json.dumps(row), flush=True)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=1e-4)
    losses: list[float] = []

    def train() -> None:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(run(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    row["training_step"] = least(train, repeats)
    row["losses"] = [round(value, 4) for value in losses[:3]]
    a, b = torch.ones(PRODUCT[:2]), torch.ones(PRODUCT[1:])
    row["product"] = rate(lambda: a @ b)
    return row


def write_weights(name: str, path: str, clone: str) -> None:
    """Writes the weights of a freshly created peer model, including the statistics of batch norms."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file({key: value.contiguous() for key, value in reference(name, clone).state_dict().items()}, path)


def in_process(side: str, name: str, path: str, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """The row that a process of its own prints last, and the reason where it did not finish."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.vision",
        f"--side={side}",
        f"--models={name}",
        f"--weights={path}",
        f"--batches={size}",
    ]
    command += [f"--repeats={args.repeats}", f"--biformer={args.biformer}"]
    try:
        # Ours is measured twice, and compiled once.
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(path).parent / "compiled")}
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=args.limit, check=False, env=environment)
        out, end = done.stdout, "" if done.returncode == 0 else f"ended with status {done.returncode}"
    except subprocess.TimeoutExpired as expired:
        out, end = expired.stdout or b"", f"not done after {args.limit:.0f} s"
    rows = [line for line in out.decode().splitlines() if line.startswith("{")]
    return {**(json.loads(rows[-1]) if rows else {}), **({"stopped": end} if end else {})}


def compare(name: str, size: int, path: str, args: argparse.Namespace) -> dict[str, Any]:
    """Ours, the peer in each form, and ours once more."""
    first = in_process("ours", name, path, size, args)
    print(f"{name}, batch {size}, ours:", json.dumps(first), flush=True)
    others = {side: in_process(side, name, path, size, args) for side in SIDES[1:]}
    again = in_process("ours", name, path, size, args)
    mine = [row for row in (first, again) if "losses" in row]
    if not mine:
        return {"ours": {"stopped": first.get("stopped", "")}}
    first = mine[0]
    times = {what: min(row[what] for row in mine) for what in ("forward", "training_step")}
    row: dict[str, Any] = {"ours": {**times, "losses": first["losses"], "product": max(row["product"] for row in mine)}}
    for side, other in others.items():
        logits = other.pop("logits", None)
        row[side] = other
        row[f"times_faster_than_{side}"] = {
            what: round(other[what] / mine, 2) for what, mine in times.items() if what in other
        }
        if logits:
            largest = max(map(abs, logits))
            row[side]["largest_relative_difference"] = float(
                f"{max(abs(a - b) for a, b in zip(first['logits'], logits, strict=True)) / largest:.1e}"
            )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS))
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--limit",
        type=float,
        default=90.0,
        help="seconds for one side of one row; what is not done then is left out, and said so",
    )
    parser.add_argument("--biformer", default="", help="a checkout of github.com/rayleizhu/BiFormer")
    parser.add_argument("--output", type=pathlib.Path, help="default benchmarks/results/<platform>/vision.json")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        name, size = args.models[0], args.batches[0]
        row = (
            ours(name, args.weights, size, args.repeats)
            if args.side == "ours"
            else theirs(name, args.weights, size, args.repeats, args.biformer, args.side == "compile")
        )
        print(json.dumps(row), flush=True)
        return
    import importlib.metadata

    import jax

    rows: dict[str, Any] = {}
    versions = {package: importlib.metadata.version(package) for package in ("jax", "torch", "timm")}
    output = args.output or pathlib.Path(__file__).parent / "results" / jax.default_backend() / "vision.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            if name == "biformer_tiny" and not args.biformer:
                print("biformer_tiny: left out, no --biformer", flush=True)
                continue
            path = f"{folder}/{name}.safetensors"
            write_weights(name, path, args.biformer)
            for size in args.batches:
                rows[f"{name}, batch {size}"] = row = compare(name, size, path, args)
                print(f"{name}, batch {size}", json.dumps(row), flush=True)
                # After each row: what was measured outlives a run that is cut short.
                report = {
                    "versions": versions,
                    "cores": os.cpu_count(),
                    "malloc": os.environ.get("GLIBC_TUNABLES", "default"),
                }
                report |= {"load_average_at_end": os.getloadavg()[0], "milliseconds": rows}
                output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
