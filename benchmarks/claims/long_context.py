"""Byte language modeling at 4096 bytes: full attention, a sliding window, routing and LongNet, same parameters, same
bytes.

Bits per byte of the held-out modules of Python's standard library, overall and by position: a loss that falls with
position shows that the model uses context. The numbers of parameters agree within 2 %, every run reads the same 1.6
million bytes, and no ranking is claimed. Uniformly random bytes cost 8 bits. Cost is that of the loss and its gradient
on two windows: seconds, and the MiB needed in addition to parameters and gradient. Routing is trained with causal
membership, so that no figure depends on later bytes.

After these 200 steps (seed 0) none of the models uses bytes farther back than about 256: bits per byte are the same
from there to the end. The models differ in how fast they learn, the local ones first, and in the cost of a step;
seconds were measured on a machine with other work.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.claims.run import Contest, Contestant, Row, main

if TYPE_CHECKING:
    import jax
    from flax import nnx

    import tasks

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "full attention": ("transformer_nano", {}),
    "window 256": ("transformer_nano", {"window": 256}),
    "routing": (
        "routing_transformer_nano",
        {
            "window": 256,
            "clusters": 64,
            "cluster_window": 64,
            "relative": 64,
            "membership": "causal",
            "hidden": 400,
            "routed_layers": None,
        },
    ),
    "longnet": ("longnet_nano", {"segments": (256, 1024, 4096), "rates": (1, 4, 4)}),
}
SETTINGS: dict[str, dict[str, Any]] = {"routing": {"aux_losses": {"commitment": 1e-4}}}


def bits_by_position(
    model: nnx.Module, task: tasks.Task, edges: Sequence[int], windows: int, batch_size: int = 2
) -> dict[str, float]:
    """Bits per byte of the first ``windows`` windows of the test split, for each range of positions between two
    ``edges``.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    model.eval()
    graph, state = nnx.split(model)

    @jax.jit
    def losses(state: nnx.State, tokens: jax.Array, targets: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, state)(tokens).astype(jnp.float32)
        return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]

    examples = task.examples("test")
    total, count = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    chosen = [examples.get(i, None) for i in range(min(windows, len(examples)) // batch_size * batch_size)]
    for start in range(0, len(chosen), batch_size):
        batch = {
            name: np.stack([example[name] for example in chosen[start : start + batch_size]])
            for name in ("tokens", "targets", "real")
        }
        bits = np.asarray(losses(state, batch["tokens"], batch["targets"])) / math.log(2) * batch["real"]
        for i, (begin, end) in enumerate(itertools.pairwise(edges)):
            total[i] += bits[:, begin:end].sum()
            count[i] += batch["real"][:, begin:end].sum()
    return {
        f"bytes_{begin}_to_{end}": float(total[i] / count[i])
        for i, (begin, end) in enumerate(itertools.pairwise(edges))
    }


def cost_of_a_step(model: nnx.Module, task: tasks.Task, batch_size: int = 2) -> dict[str, float]:
    """Seconds of the loss and its gradient on one batch, the least of three, and the MiB of temporary memory that the
    program needs in addition to parameters and gradient.
    """
    import jax
    from flax import nnx

    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    examples = task.examples("test")
    rows = [examples.get(i, None) for i in range(batch_size)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def loss(params: nnx.State, rest: nnx.State) -> jax.Array:
        # A copy: routing updates its centroids with the tokens it sees.
        return task.loss(nnx.merge(graph, params, rest, copy=True), batch, jax.random.key(0))[0]

    compiled = jax.jit(jax.grad(loss)).lower(params, rest).compile()
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(compiled(params, rest))
        seconds.append(time.perf_counter() - start)
    sizes: Any = compiled.memory_analysis()
    return {"step_seconds": min(seconds[1:]), "step_mib": sizes.temp_size_in_bytes / 2**20}


def contest(quick: bool) -> Contest:
    import tasks

    length = 64 if quick else 4096
    edges = (0, length // 16, length // 4, length // 2, length)
    task: dict[str, Any] = {"name": "text", "sequence_length": length}
    if quick:
        task["dataset"] = {"name": "files", "path": __file__}
    size = {"features": 16, "num_heads": 4, "depth": 1, "hidden": 32} if quick else {"depth": 3}

    def measure(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
        made = tasks.create(**task)
        return bits_by_position(model, made, edges, 4 if quick else 64) | cost_of_a_step(model, made)

    b2 = {"optimizer": {"options": {"b2": 0.95}}}
    return Contest(
        contestants=[
            Contestant(label, name, task, {**options, **size}, {**b2, **SETTINGS.get(label, {})})
            for label, (name, options) in MODELS.items()
        ],
        steps=4 if quick else 200,
        batch_size=2,
        learning_rate=2e-3,
        evaluations=1,
        figures=(
            "bits_per_byte",
            *(f"bytes_{begin}_to_{end}" for begin, end in itertools.pairwise(edges)),
            "step_seconds",
            "step_mib",
        ),
        measure=measure,
    )


def verdict(rows: Sequence[Row]) -> bool:
    """No ranking is claimed, only that the comparison is fair: numbers of parameters within 2 % and the same number of
    steps.
    """
    sizes = [row["parameters"] for row in rows]
    return max(sizes) <= 1.02 * min(sizes) and len({row["steps"] for row in rows}) == 1


def run(arguments: list[str] | None = None) -> None:
    main("long_context", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
