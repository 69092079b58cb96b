"""Addition: the format decides whether a transformer adds longer numbers than it was trained on: index hints, reversed
digits and FIRE positions.

Y. Zhou et al., arXiv:2402.09371: without index hints every method fails beyond the training lengths; reversed digits
(the least significant first) beat the usual order; and of the position encodings FIRE does best. Transformers of two
blocks and 64 features add numbers of up to 3 digits; "at_n" is the fraction of sums of n-digit numbers that are
entirely right. The paper has 25 million parameters, 40 digits and 50000 steps; it reports that training on numbers of
up to 10 digits does not carry over to longer ones. With none of three seeds has any format been learned after so few
steps: at best 0.035 of the sums of 3 digits are right, so nothing is shown about longer ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.claims.run import Contest, Contestant, Row, figures_of, main, medians

if TYPE_CHECKING:
    from flax import nnx

PAPER = (139,)
LENGTH, TESTED = 3, 5
LENGTHS = tuple(range(LENGTH, TESTED + 1))
FIRE = {"name": "attention", "use_bias": False, "relative": "fire"}
ROTARY = {"name": "attention", "use_bias": False, "rotary": 10000.0}
FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "reverse, hints, FIRE": ({}, FIRE),
    "reverse, no hints, FIRE": ({"index_hints": False}, FIRE),
    "usual order, hints, FIRE": ({"reverse": False}, FIRE),
    "reverse, hints, rotary": ({}, ROTARY),
}
LEARNED = 0.95


def contest(quick: bool) -> Contest:
    size: dict[str, Any] = {"features": 16 if quick else 64, "depth": 1 if quick else 2, "num_heads": 2 if quick else 4}
    task = {"name": "addition", "length": LENGTH, "test_length": TESTED, "num_eval": 16 if quick else 512}
    contestants = [
        Contestant(label, "transformer_nano", {**task, **form}, {**size, "rotary": None, "mixer": mixer})
        for label, (form, mixer) in FORMATS.items()
    ]
    return Contest(
        contestants=contestants,
        steps=4 if quick else 1000,
        batch_size=8 if quick else 64,
        learning_rate=3e-3,
        evaluations=2 if quick else 5,
        figures=("accuracy", *(f"at_{length}" for length in LENGTHS)),
        measure=measured,
    )


def measured(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
    """The fraction of sums that are entirely right, at each length."""
    return {f"at_{length}": figures_of(model, contestant, test_length=length)["exact"] for length in LENGTHS}


def verdict(rows: Sequence[Row]) -> bool:
    """With reversed digits, hints and FIRE, at least 0.95 of the sums of the longest training length are right, and
    more than in the usual order; and with one digit more, more sums are right than without hints, than in the usual
    order, and than with rotary positions.
    """
    known, longer = medians(rows, f"at_{LENGTH}"), medians(rows, f"at_{LENGTH + 1}")
    best, *others = FORMATS
    usual = known["usual order, hints, FIRE"]
    return known[best] >= LEARNED and known[best] > usual and all(longer[best] > longer[label] for label in others)


def run(arguments: list[str] | None = None) -> None:
    main("addition", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
