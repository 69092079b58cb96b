"""Agents: on maps of 256 tokens, agent attention is within a point of the accuracy of softmax attention and above that
of linear attention, at equal parameters, and at 1024 tokens it is faster than softmax attention.

D. Han et al., arXiv:2312.08874. The contestants are one small vision transformer on the digits at 32 x 32 pixels with
patches of 2 x 2. Its attention is softmax attention, agent attention with 9 agents, or linear attention (feature map
elu + 1); the width of the MLPs is chosen so that the numbers of parameters agree within 2 %. "forward_1024" is the time
of a forward pass in evaluation mode on eight images of 64 x 64 pixels, in milliseconds, the least of several in the
process that trained the model. The recipe is that of configs/vit.py, at a learning rate of 3e-3, for 600 steps of 16
images. Medians of three seeds: accuracies of 0.842 with agents, 0.217 with softmax attention (0.131 to 0.617) and 0.347
with linear attention, and 20, 228 and 16 ms. In so few steps softmax attention has hardly begun to learn, so the
figures show how soon a model learns.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.claims.run import Contest, Contestant, Row, main, medians, of_digits

if TYPE_CHECKING:
    from flax import nnx

PAPER = (2,)
# Agent attention has parameters of its own (its bias tables): the MLPs of the others are wider.
KINDS: dict[str, dict[str, Any]] = {
    "softmax": {"mixer": "attention", "mlp_ratio": 2.36},
    "agent": {"mixer": {"name": "agent", "agents": 9}, "mlp_ratio": 1.0},
    "linear": {"mixer": "linear_attention", "mlp_ratio": 2.36},
}


def forward_time(model: nnx.Module, side: int, repeats: int) -> float:
    """Milliseconds of a forward pass over eight images of ``side`` x ``side`` pixels, the least of ``repeats``."""
    import jax
    from flax import nnx

    model.eval()
    graph, state = nnx.split(model)
    answer = jax.jit(lambda state, images: nnx.merge(graph, state)(images))
    images = np.random.default_rng(0).standard_normal((8, side, side, 3)).astype(np.float32)
    jax.block_until_ready(answer(state, images))
    times = []
    for _ in range(repeats):
        since = time.perf_counter()
        jax.block_until_ready(answer(state, images))
        times.append(time.perf_counter() - since)
    return 1000 * min(times)


def contest(quick: bool) -> Contest:
    size = {"features": 16, "depth": 1} if quick else {"features": 48, "depth": 2}
    side = 16 if quick else 32
    whole = {"image_size": side, "patch_size": 2, "num_heads": 4, "class_token": False, "pool": "average"}

    def measure(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
        return {"forward_1024": forward_time(model, 2 * side, 1 if quick else 5)}

    return of_digits(
        {label: {**size, **whole, **options} for label, options in KINDS.items()},
        quick=quick,
        steps=600,
        warmup=60,
        batch_size=16,
        learning_rate=3e-3,
        figures=("accuracy", "loss", "forward_1024"),
        measure=measure,
    )


def verdict(rows: Sequence[Row]) -> bool:
    """The accuracy with agents is at least that of softmax attention minus 0.01, and above that of linear attention;
    and at 1024 tokens softmax attention takes longer.
    """
    accuracy, forward = medians(rows, "accuracy"), medians(rows, "forward_1024")
    return (
        accuracy["agent"] >= accuracy["softmax"] - 0.01
        and accuracy["agent"] > accuracy["linear"]
        and forward["softmax"] > forward["agent"]
    )


def run(arguments: list[str] | None = None) -> None:
    main("agents", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
