"""A pass key in irrelevant text, at growing length: full attention, a sliding window, routing and LongNet trained at
128 bytes.

A. Mohtashami and M. Jaggi, arXiv:2305.16300, section 4.2. The models are those of
:mod:`benchmarks.claims.long_context`, with the same number of parameters within 2 %; "at_n" is the fraction of the
key's digits that the most likely byte gets right in texts of n bytes, given the digits before. Chance is 1/10. The only
claim is that a window of 32, through which three layers see 93 bytes back, finds less than full attention at the
training length; nothing is claimed for greater lengths.

Seed 0: full attention finds the key at 128 bytes (0.997) and hardly beyond (0.12 at 2048), where its positions were
never trained. Routing finds the key by content and keeps most of that up to sixteen times the training length (0.89,
0.83 and 0.83). The window does not find it. LongNet, whose heads each see one in four of the bytes beyond 32, had only
begun to learn when the steps ended (0.10 at step 500, 0.17 at 1000).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.claims import long_context
from benchmarks.claims.run import Contest, Contestant, Row, main, medians

if TYPE_CHECKING:
    from flax import nnx

LENGTHS = (128, 512, 2048)
OPTIONS: dict[str, dict[str, Any]] = {
    "window 32": {"window": 32},
    "routing": {"window": 32, "clusters": 16, "cluster_window": 32, "relative": 32},
    "longnet": {"segments": (32, 128, 2048), "rates": (1, 4, 4)},
}


def digits_right(model: nnx.Module, options: dict[str, Any], length: int, count: int, batch_size: int = 4) -> float:
    """The fraction of digits that the model gets right in ``count`` examples of ``length`` bytes."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import tasks

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
    task = {"name": "passkey", "length": LENGTHS[0], "test_length": LENGTHS[0], "num_eval": 8 if quick else 128}
    lengths = (128, 192) if quick else LENGTHS
    size = {"features": 16, "num_heads": 4, "depth": 1, "hidden": 32} if quick else {"depth": 3}

    def measure(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
        return {f"at_{n}": digits_right(model, dict(contestant.task), n, 8 if quick else 64) for n in lengths}

    contestants = []
    for contestant in long_context.contest(quick).contestants:
        label = contestant.label.replace("256", "32")
        options = {**long_context.MODELS[contestant.label][1], **OPTIONS.get(label, {}), **size}
        contestants.append(dataclasses.replace(contestant, label=label, task=task, options=options))
    return Contest(
        contestants=contestants,
        steps=4 if quick else 1000,
        batch_size=4 if quick else 32,
        learning_rate=2e-3,
        evaluations=2 if quick else 10,
        figures=("accuracy", *(f"at_{n}" for n in lengths)),
        measure=measure,
    )


def verdict(rows: Sequence[Row]) -> bool:
    """At the training length, full attention has an accuracy of at least 0.9 and the window of 32 a lower one."""
    at = medians(rows, f"at_{LENGTHS[0]}")
    return at["full attention"] >= 0.9 and at["window 32"] < at["full attention"]


def run(arguments: list[str] | None = None) -> None:
    main("passkey", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
