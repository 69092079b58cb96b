"""Attention sinks: where weights need not sum to 1, the first token draws less of them.

X. Gu et al., When Attention Sink Emerges in Language Models, arXiv:2410.10781: without a normalization no sinks emerge,
and a learned key without a value takes their place. Byte language models of four blocks and 64 features on windows of
64 bytes of Python's standard library, with the same steps: softmax; softmax with a learned logit a head in its
denominator; sigmoid weights, shifted by -log(64), which are not divided by their sum; and plain scores for weights.
"sink" is the share of heads in which the first token's importance is above 0.3 (section 3.1), of 64 windows; weights
that do not sum to 1 are divided by their sum first. "importance" is the mean of the first token's over heads.

With three seeds, after 1.6 million bytes, there are next to no sinks, whatever the weights; the first token's
importance is 0.04 to 0.06, and 0.07 is that of equal weights. What the claim is about does not arise in models so small
and so little trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.claims.run import Contest, Contestant, Row, main, medians, sequences, task_of

if TYPE_CHECKING:
    from flax import nnx

PAPER = (48, 239)
LENGTH = 64
KINDS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax, learned logit": {"sinks": True},
    "sigmoid": {"normalize": "sigmoid", "logit_bias": -math.log(LENGTH)},
    "no normalization": {"normalize": "none"},
}


def contest(quick: bool) -> Contest:
    task: dict[str, Any] = {"name": "text", "sequence_length": LENGTH}
    if quick:
        task = {"name": "text", "dataset": {"name": "files", "path": __file__}, "sequence_length": 16}
    size = {"features": 16 if quick else 64, "depth": 1 if quick else 4, "num_heads": 2 if quick else 4}
    contestants = [
        Contestant(
            label, "transformer_nano", task,
            {**size, "mixer": {"name": "attention", "rotary": 10000.0, "use_bias": False, **options}},
        )
        for label, options in KINDS.items()
    ]  # fmt: skip
    return Contest(
        contestants=contestants,
        steps=4 if quick else 800,
        batch_size=8 if quick else 32,
        learning_rate=3e-3,
        evaluations=2 if quick else 4,
        figures=("bits_per_byte", "sink", "importance"),
        measure=measured,
    )


def measured(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
    """The first token's share of heads, and its importance."""
    import numpy as np

    import zoo

    model.eval()
    maps = zoo.attention_maps(model, sequences(task_of(contestant)))
    sizes = [np.abs(weights) for weights in maps.values()]
    shares = [size / np.maximum(size.sum(-1, keepdims=True), 1e-30) for size in sizes]
    return {
        "sink": float(zoo.attention_sinks(maps)[0]),
        "importance": float(np.mean([share[..., 0].mean() for share in shares]))
    }  # fmt: skip


def verdict(rows: Sequence[Row]) -> bool:
    """The first token's mean importance is greater with softmax than with sigmoid weights and than with plain scores,
    and it is a sink in more heads.
    """
    sink, importance = medians(rows, "sink"), medians(rows, "importance")
    return all(
        sink["softmax"] > sink[label] and importance["softmax"] > importance[label]
        for label in ("sigmoid", "no normalization")
    )


def run(arguments: list[str] | None = None) -> None:
    main("attention_sinks", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
