"""A pass key in irrelevant text, at growing length: full attention, a sliding window, routing and LongNet trained at 256 bytes.

A. Mohtashami and M. Jaggi, arXiv:2305.16300, section 4.2. The models of :mod:`benchmarks.claims.long_context`, of one size within 2 %;
"at_n" is the share of the key's digits that the likeliest byte gets right in n bytes, given the digits before. Chance is 1/10.
Claimed is only that a window of 64 does not find what full attention finds at the length of training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tasks
from benchmarks.claims import long_context
from benchmarks.claims.run import Contest, Contestant, Row, main, medians

LENGTHS = (256, 1024, 4096)
WINDOWS = {"window": {"window": 64}, "routing": {"window": 64, "clusters": 16, "cluster_window": 32, "relative": 32}}


def digits_right(model: nnx.Module, options: dict[str, Any], length: int, count: int, batch_size: int = 4) -> float:
    """The share of digits that the model gets right in ``count`` examples of ``length`` bytes."""
    model.eval()
    graph, state = nnx.split(model)
    likeliest = jax.jit(lambda state, tokens: jnp.argmax(nnx.merge(graph, state)(tokens), -1))
    examples = tasks.create(**{**options, "test_length": length, "num_eval": count}).examples("test")
    right = asked = 0
    for start in range(0, count, batch_size):
        batch = [examples.get(i, None) for i in range(start, start + batch_size)]
        said = np.asarray(likeliest(state, np.stack([example["tokens"] for example in batch])))
        wanted = np.stack([example["answers"] for example in batch]).astype(bool)
        right += int((said == np.stack([example["targets"] for example in batch]))[wanted].sum())
        asked += int(wanted.sum())
    return right / asked


def contest(quick: bool) -> Contest:
    task = {"name": "passkey", "length": 128 if quick else LENGTHS[0], "num_eval": 8 if quick else 128}
    lengths = (128, 192) if quick else LENGTHS
    size = {"features": 16, "num_heads": 4, "depth": 1, "hidden": 32} if quick else {"depth": 3}

    def options(label: str, given: dict[str, Any]) -> dict[str, Any]:
        nearer = WINDOWS.get(label.split()[0], {})
        return {**given, **nearer, **({"segments": (64, 128, 256), "rates": (1, 2, 4)} if label == "longnet" else {}), **size}

    def measure(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
        return {f"at_{n}": digits_right(model, dict(contestant.task), n, 8 if quick else 64) for n in lengths}

    base = long_context.contest(quick)
    return Contest(
        contestants=[
            dataclasses.replace(c, label=c.label.replace("256", "64"), task=task, options=options(c.label, long_context.MODELS[c.label][1]))
            for c in base.contestants
        ],
        steps=4 if quick else 1500,
        batch_size=8,
        learning_rate=2e-3,
        evaluations=2 if quick else 10,
        figures=("accuracy", *(f"at_{n}" for n in lengths)),
        measure=measure,
    )


def verdict(rows: Sequence[Row]) -> bool:
    at = medians(rows, f"at_{LENGTHS[0]}")
    return at["full attention"] >= 0.9 and at["window 64"] < at["full attention"]


def run(arguments: list[str] | None = None) -> None:
    main("passkey", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
