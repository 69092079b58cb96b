"""Universal relative positions: an encoder with them learns where its tokens are, and none with other relative
positions does.

S. Luo et al., arXiv:2205.13401, section 5.1: where positions act within the softmax alone, a row of equal tokens gives
equal outputs; a learned factor for each distance after the softmax changes that. Encoders of three blocks and 64
features have to name the position of each of 16 random tokens out of 80: URPE, learned biases alone, and rotary
positions. "spread" is the greatest difference of the outputs for 16 equal tokens. The paper has 128 tokens of a
vocabulary of 1000, and a second task, to name every other token, which takes several times as many steps. Medians of
three seeds: URPE and rotary positions name all positions, learned biases do no better than guessing. With rotary
positions equal tokens give equal outputs, and yet the positions of random ones are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.claims.run import Contest, Contestant, Row, main, medians

if TYPE_CHECKING:
    from flax import nnx

PAPER = (1,)
LENGTH, VOCABULARY = 16, 100
MIXERS: dict[str, dict[str, Any]] = {
    "URPE": {"name": "urpe_attention", "reach": LENGTH},
    "learned biases": {"name": "attention", "relative": {"name": "learned", "reach": LENGTH}},
    "rotary": {"name": "attention", "rotary": 10000.0},
}
LEARNED = 0.95


def contest(quick: bool) -> Contest:
    size: dict[str, Any] = {"features": 16 if quick else 64, "depth": 1 if quick else 3, "num_heads": 2 if quick else 4}
    size |= {"types": 0, "embedding_norm": False, "embedding_std": 0.16, "position": None, "norm_order": "pre"}
    task = {"name": "position_identification", "length": LENGTH, "vocab_size": VOCABULARY}
    task |= {"num_eval": 16 if quick else 256}
    return Contest(
        contestants=[Contestant(label, "bert_tiny", task, {**size, "mixer": mixer}) for label, mixer in MIXERS.items()],
        steps=4 if quick else 1200,
        batch_size=8 if quick else 32,
        learning_rate=1e-3,
        evaluations=2 if quick else 6,
        figures=("accuracy", "spread"),
        measure=measured,
    )


def measured(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
    """The greatest difference between the logits of equal tokens."""
    import jax.numpy as jnp

    model.eval()
    logits = model(jnp.full((1, LENGTH), 7))  # type: ignore[operator]
    return {"spread": float(jnp.abs(logits - logits[:, :1]).max())}


def verdict(rows: Sequence[Row]) -> bool:
    """URPE names at least 0.95 of the positions, and learned biases and rotary positions at most twice as many as
    guessing does; and for equal tokens, their outputs differ by less than 0.001, and those of URPE by more.
    """
    accuracy, spread = medians(rows, "accuracy"), medians(rows, "spread")
    others = [label for label in MIXERS if label != "URPE"]
    return (
        accuracy["URPE"] >= LEARNED
        and max(accuracy[label] for label in others) <= 2 / LENGTH
        and max(spread[label] for label in others) < 1e-3 < spread["URPE"]
    )


def run(arguments: list[str] | None = None) -> None:
    main("position_identification", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
