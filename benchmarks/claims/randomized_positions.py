"""Randomized positions: an encoder that was trained on short strings keeps what it learned on longer ones.

A. Ruoss et al., arXiv:2305.16843: the positions of a sequence are a sorted random sample from the range that the
longest sequence will need, sampled anew at each step. Encoders of three blocks and 64 features, post-norm, learn to
reverse a bit string of 1 to 8 symbols, with learned position embeddings, sinusoids, rotary positions and ALiBi; each as
it is, and with positions sampled from 64. They are tested on 9 to 20 symbols. The paper trains on up to 40 and tests on
up to 500 symbols, with positions from 2048, on fifteen problems. "at_n" is the accuracy at that length; 8 is the
longest of training.

Medians of three seeds: learned embeddings and sinusoids gain 0.20 and 0.27 at lengths beyond training, rotary positions
0.07, ALiBi nothing. Without randomization all but ALiBi solve the training lengths without error; the randomized ones
get 0.73 to 0.92 of the symbols right: they learn more slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.claims.run import Contest, Contestant, Row, main, medians

if TYPE_CHECKING:
    from flax import nnx

PAPER = (167,)
METHODS: dict[str, dict[str, Any]] = {
    "learned": {"position": "learned"},
    "sinusoid": {"position": "sinusoid"},
    "rotary": {"position": None, "mixer": {"name": "attention", "rotary": 10000.0}},
    "alibi": {"position": None, "mixer": {"name": "attention", "relative": "alibi"}},
}
LONGEST, TESTED, POSITIONS = 8, 20, 64
LENGTHS = (8, 12, 16, 20)
GAP = 0.1


def _label(method: str, randomized: bool) -> str:
    return f"{method}, randomized" if randomized else method


def contest(quick: bool) -> Contest:
    size: dict[str, Any] = {"features": 16 if quick else 64, "depth": 1 if quick else 3, "num_heads": 2 if quick else 8}
    # Embeddings are scaled as the authors' are: 0.02 sqrt(64).
    size |= {"types": 0, "embedding_norm": False, "embedding_std": 0.16, "max_length": POSITIONS}
    task = {"name": "algorithmic", "problem": "reverse_string", "length": LONGEST, "test_length": TESTED}
    task |= {"num_eval": 16 if quick else 512}
    contestants = []
    for method, options in METHODS.items():
        for randomized in (False, True):
            drawn = {"randomized": 2 * TESTED} if randomized else {}
            contestants.append(Contestant(_label(method, randomized), "bert_tiny", task, {**size, **options, **drawn}))
    return Contest(
        contestants=contestants,
        steps=4 if quick else 3000,
        batch_size=8 if quick else 32,
        learning_rate=1e-3,
        evaluations=2 if quick else 10,
        figures=("accuracy", *(f"at_{length}" for length in LENGTHS)),
        measure=measured,
    )


def measured(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
    """The accuracy at each length by itself."""
    from flax import nnx

    import tasks
    from layers.module import Statistic
    from layers.state import flatten
    from training import input as feed
    from training.step import Skeleton, make_evaluation

    figures = {}
    skeleton, arrays = Skeleton(model), flatten(model, nnx.Param) | flatten(model, Statistic)
    for length in LENGTHS:
        one = {"length": length - 1, "test_length": length, "test_shortest": length}
        options = {name: value for name, value in contestant.task.items() if name != "name"}
        task = tasks.create("algorithmic", **{**options, **one})
        evaluate = make_evaluation(skeleton, task)
        rows = next(iter(feed.evaluation_batches(task.examples("test"), len(task.examples("test")))))
        total, count = evaluate(arrays, rows)[0][0]["accuracy"]
        figures[f"at_{length}"] = float(total / count)
    return figures


def verdict(rows: Sequence[Row]) -> bool:
    """With learned embeddings, sinusoids and rotary positions alike, the accuracy on 9 to 20 symbols is higher with
    randomized positions than without by more than 0.1.
    """
    accuracy = medians(rows, "accuracy")
    methods = ("learned", "sinusoid", "rotary")
    return all(accuracy[_label(method, True)] - accuracy[_label(method, False)] > GAP for method in methods)


def run(arguments: list[str] | None = None) -> None:
    main("randomized_positions", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
