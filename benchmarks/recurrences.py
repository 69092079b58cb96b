"""The linear recurrences on this device: the XLA form against the one-token recurrence under plain autodiff, in one
run.

``python -m benchmarks.recurrences`` writes benchmarks/results/<platform>/recurrences.json: milliseconds (the least of
several runs, the two forms taken in turn), their ratio, and the temporary memory of the gradient at two lengths.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import jax

LENGTH = 2048
REPEATS = 4
FORMS = ("xla", "reference")


def linear_attention(
    length: int, decay: str | None, *, heads: int = 8, groups: int = 8, state_dim: int = 64
) -> dict[str, jax.Array]:
    """Batch 2, values of 64."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    arrays = {
        "q": normal(2, length, groups, state_dim),
        "k": normal(2, length, groups, state_dim) * state_dim**-0.5,
        "v": normal(2, length, heads, 64),
    }
    if decay is not None:
        shape = {"head": (heads,), "token": (2, length, heads), "key": (2, length, heads, state_dim)}[decay]
        arrays["decay"] = -np.exp(normal(*shape) - 2)
    return jax.tree.map(jnp.asarray, arrays)


def selective_scan(length: int, *, channels: int = 512, state_dim: int = 16) -> dict[str, jax.Array]:
    """Batch 2."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    arrays = {
        "x": normal(2, length, channels),
        "delta": np.log1p(np.exp(normal(2, length, channels) - 3)),
        "A": -np.exp(0.3 * normal(channels, state_dim)),
        "B": normal(2, length, state_dim),
        "C": normal(2, length, state_dim),
    }
    return jax.tree.map(jnp.asarray, arrays)


CASES: dict[str, tuple[str, Callable[[int], dict[str, jax.Array]]]] = {
    "linear_attention, no decay": ("linear_attention", lambda n: linear_attention(n, None)),
    "linear_attention, decay per head": ("linear_attention", lambda n: linear_attention(n, "head")),
    "linear_attention, decay per token": ("linear_attention", lambda n: linear_attention(n, "token")),
    "linear_attention, decay per key": ("linear_attention", lambda n: linear_attention(n, "key")),
    "linear_attention, decay per token, 1 group, state 128": (
        "linear_attention",
        lambda n: linear_attention(n, "token", groups=1, state_dim=128),
    ),
    "selective_scan": ("selective_scan", selective_scan),
}


def programs(op: str, form: str) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    import pallas_kernels

    def forward(arrays: dict[str, jax.Array]) -> jax.Array:
        return getattr(pallas_kernels, op)(**arrays, implementation=form)

    def loss(arrays: dict[str, jax.Array]) -> jax.Array:
        return jnp.sum(jnp.square(forward(arrays)))

    return {"forward": jax.jit(forward), "gradient": jax.jit(jax.grad(loss))}


def milliseconds(run: Callable[..., Any], arrays: dict[str, jax.Array]) -> float:
    import jax

    start = time.perf_counter()
    jax.block_until_ready(run(arrays))
    return 1e3 * (time.perf_counter() - start)


def measure(op: str, make: Callable[[int], dict[str, jax.Array]]) -> dict[str, Any]:
    import jax

    arrays = make(LENGTH)
    by_form = {form: programs(op, form) for form in FORMS}
    row: dict[str, Any] = {}
    for what in ("forward", "gradient"):
        runs = {form: by_form[form][what] for form in FORMS}
        for run in runs.values():
            milliseconds(run, arrays)
        times = {
            form: min(times)
            for form, times in zip(
                runs, zip(*([milliseconds(r, arrays) for r in runs.values()] for _ in range(REPEATS)))
            )
        }
        row[what] = {f"{form}_ms": round(t, 2) for form, t in times.items()}
        row[what]["ratio"] = round(times["reference"] / times["xla"], 2)
    for length in (LENGTH, 2 * LENGTH):
        shapes = jax.eval_shape(lambda length=length: make(length))
        memory = {
            form: by_form[form]["gradient"].lower(shapes).compile().memory_analysis().temp_size_in_bytes
            for form in FORMS
        }
        row[f"gradient_temporary_mib_at_{length}"] = {form: round(size / 2**20, 1) for form, size in memory.items()}
    return row


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    import jax

    rows = {}
    for name, (op, make) in CASES.items():
        rows[name] = measure(op, make)
        print(name, json.dumps(rows[name]), flush=True)
    report = {
        "length": LENGTH,
        "dtype": "float32",
        "jax": jax.__version__,
        "cores": os.cpu_count(),
        "load_average_at_end": os.getloadavg()[0],
        "rows": rows,
    }
    path = pathlib.Path(__file__).parent / "results" / jax.default_backend() / "recurrences.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
