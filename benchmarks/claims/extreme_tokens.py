"""Extreme tokens: with a softmax a head that has nothing to copy attends to the first token, whose value becomes small;
with ReLU weights it does neither.

T. Guo et al., arXiv:2410.13835, sections 2.1 and 2.3. Transformers of one block, one head and 64 features on
Bigram-Backcopy, sequences of a start token and 64 symbols: only after 3 of the 64 symbols is there something to copy.
"accuracy" is that after these triggers. "sink" is the weight of the first token for the other queries, relative to the
sum of their weights; "value" is the size of the first token's value, relative to the others' (``zoo.value_drains``).
Both are means over 64 sequences. ReLU weights are divided by the number of tokens that a query sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.claims.run import Contest, Contestant, Row, main, medians, sequences, task_of

if TYPE_CHECKING:
    from flax import nnx

PAPER = (48,)
KINDS = {"softmax": "attention", "ReLU": "relu_attention"}


def contest(quick: bool) -> Contest:
    task: dict[str, Any] = {"name": "bigram_backcopy", **dict.fromkeys(("length", "test_length"), 16 if quick else 64)}
    task["num_eval"] = 8 if quick else 128
    size = {"features": 16 if quick else 64, "depth": 1, "num_heads": 1}
    contestants = [
        Contestant(label, "transformer_nano", task, {**size, "mixer": {"name": name, "rotary": 10000.0}})
        for label, name in KINDS.items()
    ]
    return Contest(
        contestants=contestants,
        steps=4 if quick else 1000,
        batch_size=8 if quick else 32,
        learning_rate=3e-3,
        evaluations=2 if quick else 10,
        figures=("accuracy", "sink", "value"),
        measure=measured,
    )


def measured(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
    """The first token's weight where nothing is to be copied, and the size of its value."""
    import numpy as np

    import zoo

    model.eval()
    task = task_of(contestant)
    tokens = sequences(task)
    (weights,) = zoo.attention_maps(model, tokens).values()
    (values,) = zoo.value_drains(model, tokens).values()
    shares = weights[..., 0].mean(1) / np.maximum(weights.sum(-1).mean(1), 1e-30)
    copies = np.isin(tokens, task.triggers)
    return {"sink": float(shares[:, 1:][~copies[:, 1:]].mean()), "value": float(values[:, 0].mean())}


def verdict(rows: Sequence[Row]) -> bool:
    """After triggers both are right in at least 0.9. With a softmax the first token has most of the weight, and its
    value is less than half as large as the others; with ReLU weights neither.
    """
    accuracy, sink, value = (medians(rows, figure) for figure in ("accuracy", "sink", "value"))
    extreme = {label: (sink[label] > 0.5, value[label] < 0.5) for label in KINDS}
    return min(accuracy.values()) >= 0.9 and extreme == {"softmax": (True, True), "ReLU": (False, False)}


def run(arguments: list[str] | None = None) -> None:
    main("extreme_tokens", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
