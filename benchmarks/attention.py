"""Time of ``pallas_kernels.attention`` over that of ``jax.nn.dot_product_attention``, in one run.

    python -m benchmarks.attention

prints one line for each shape: milliseconds of both, forward and with the gradient, and their ratio (above 1: ours is
faster). Times are the least of several runs that alternate, because the speed of a shared machine drifts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax

SHAPES: tuple[tuple[str, tuple[int, int, int, int], dict[str, Any]], ...] = (
    ("windows of 7x7", (512, 49, 4, 32), {}),
    ("ViT at 224", (4, 197, 12, 64), {}),
    ("length 1024", (1, 1024, 8, 64), {}),
    ("length 2048, causal", (1, 2048, 8, 64), {"causal": True}),
    ("length 4096, window 256 + 256", (1, 4096, 8, 64), {"window": (256, 256)}),
)
REPEATS = 5


def best_times(functions: list[Callable[..., Any]], *args: jax.Array) -> list[float]:
    """Milliseconds of each function, the best of ``REPEATS``, taken in turns."""
    import jax

    for function in functions:
        jax.block_until_ready(function(*args))
    best = [float("inf")] * len(functions)
    for _ in range(REPEATS):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            jax.block_until_ready(function(*args))
            best[i] = min(best[i], 1e3 * (time.perf_counter() - start))
    return best


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    import jax
    import jax.numpy as jnp

    from pallas_kernels import attention

    print(
        f"{'':32}{'forward: ours':>14}{'jax.nn':>9}{'ratio':>7}{'gradient: ours':>16}{'jax.nn':>9}{'ratio':>7}   ms, "
        f"{jax.devices()[0].device_kind}"
    )
    for name, shape, options in SHAPES:
        q, k, v = (jax.random.normal(jax.random.key(i), shape) for i in range(3))
        theirs = {"is_causal": options.get("causal", False), "local_window_size": options.get("window")}
        pair = [
            lambda q, k, v, options=options: attention(q, k, v, **options),
            lambda q, k, v, theirs=theirs: jax.nn.dot_product_attention(q, k, v, **theirs),
        ]
        forward = best_times([jax.jit(f) for f in pair], q, k, v)
        gradient = best_times(
            [jax.jit(jax.grad(lambda q, k, v, f=f: jnp.sum(f(q, k, v) ** 2), (0, 1, 2))) for f in pair], q, k, v
        )
        cells = "".join(f"{a:{wide}.1f}{b:9.1f}{b / a:7.2f}" for wide, (a, b) in ((14, forward), (16, gradient)))
        print(f"{name:32}{cells}", flush=True)


if __name__ == "__main__":
    main()
