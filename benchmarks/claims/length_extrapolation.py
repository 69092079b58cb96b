"""Softplus attention with re-weighting: of models trained on short texts, it loses the least quality on long ones.

B. Gao, M. W. Spratling, arXiv:2501.13428: softmax is replaced by softplus divided by its sum, with logits scaled by the
logarithm of the number of keys (LSSA), and the weights are sharpened by a power (LSSAR, p = 15). Byte language models
of three blocks and 64 features with rotary positions read windows of 64 bytes of Python's standard library; "at_nx" is
bits per byte of held-out text in windows of n times that length. The paper trains GPT-2 (small) at 1024 tokens; its
loss at 1, 2, 4 and 8 times that length is 3.19, 4.17, 5.45 and 6.28 with softmax and 3.19, 3.19, 3.23 and 3.32 with
LSSAR. Medians of three seeds: from the training length to eight times that, bits per byte rise by 0.42 with LSSAR, 1.39
with softmax and 1.77 with LSSA, in line with the paper. But in so few steps LSSAR learns less, 2.99 against 2.61 at the
training length, and for that reason the claim does not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.claims.run import Contest, Contestant, Row, main, medians

if TYPE_CHECKING:
    from flax import nnx

PAPER = (4,)
LENGTH = 64
FACTORS = (1, 2, 4, 8)
MIXERS: dict[str, dict[str, Any]] = {
    "softmax": {"name": "attention", "use_bias": False},
    "LSSA": {"name": "softplus_attention", "power": None},
    "LSSAR": {"name": "softplus_attention", "power": 15.0},
}
NEAR = 0.1


def contest(quick: bool) -> Contest:
    task: dict[str, Any] = {"name": "text", "sequence_length": LENGTH}
    if quick:
        task = {"name": "text", "dataset": {"name": "files", "path": __file__}, "sequence_length": 16}
    size = {"features": 16 if quick else 64, "depth": 1 if quick else 3, "num_heads": 2 if quick else 4}
    contestants = [
        Contestant(label, "transformer_nano", task, {**size, "mixer": {**mixer, "rotary": 10000.0}})
        for label, mixer in MIXERS.items()
    ]
    return Contest(
        contestants=contestants,
        steps=4 if quick else 400,
        batch_size=8 if quick else 32,
        learning_rate=3e-3,
        evaluations=2,
        figures=("bits_per_byte", *(f"at_{factor}x" for factor in FACTORS)),
        measure=measured,
    )


def measured(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
    """Bits per byte of the same text, in windows of one to eight times the training length."""
    import tasks
    from benchmarks.claims.long_context import bits_by_position

    options = {name: value for name, value in contestant.task.items() if name != "name"}
    length, found = options.pop("sequence_length"), {}
    for factor in FACTORS:
        task = tasks.create("text", sequence_length=factor * length, **options)
        size = max(FACTORS) // factor
        (found[f"at_{factor}x"],) = bits_by_position(
            model, task, (0, factor * length), 32 * size, batch_size=4 * size
        ).values()
    return found


def verdict(rows: Sequence[Row]) -> bool:
    """From the training length to eight times that, bits per byte rise by less with LSSAR than with LSSA and with
    softmax, and at the training length LSSAR is at most 0.1 above softmax.
    """
    short, long = medians(rows, "at_1x"), medians(rows, f"at_{FACTORS[-1]}x")
    rise = {label: long[label] - short[label] for label in MIXERS}
    return rise["LSSAR"] < min(rise["LSSA"], rise["softmax"]) and short["LSSAR"] <= short["softmax"] + NEAR


def run(arguments: list[str] | None = None) -> None:
    main("length_extrapolation", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
