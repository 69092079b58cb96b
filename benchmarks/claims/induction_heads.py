"""Induction heads: Mamba trained at up to 256 tokens holds an accuracy of at least 0.95 at 8192.

A. Gu, T. Dao, arXiv:2312.00752, table 2 (there trained at 256 and tested up to 1 048 576 tokens, after 25 epochs of
8192 steps of 8). As there: two layers of 64 channels, a vocabulary of 16, so that chance is 1/15, and batches of 8. Our
choices, so that a hundredth of the steps is enough: training lengths from 8 to 256, log-uniform (at 256 alone the rule
was not found within 1100 steps), 2000 steps at a learning rate of 3e-3 with a cosine schedule, and step sizes of the
state space that start between 1e-7 and 1e-5. With these the channels forget little within the lengths tested unless
they learn to; nothing in training asks for memory beyond the training length. The row "released steps" starts with step
sizes of 1e-3 to 0.1, as the released models; with 1e-6 to 0.1, three seeds held 1.00, 0.67 and 0.66 at 8192. The
accuracy at 65536 tokens, 256 times the training length, is shown and not part of the claim. Long sequences are read in
pieces with a recurrent state, in no more memory than at 1024 tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.claims.run import Contest, Contestant, Row, main, medians

PAPER = (194,)


if TYPE_CHECKING:
    import jax
    from flax import nnx

PIECE = 1024


def answers_by_state(model: Any, tokens: np.ndarray) -> np.ndarray:
    """The most likely token (batch,) after ``tokens`` (batch, length), read in pieces."""
    from flax import nnx

    length = tokens.shape[1]
    graph, arrays = nnx.split(model)
    state = model.init_state(len(tokens), length)
    begin = 0
    # The short piece first, so that any length needs at most two compiled programs.
    for end in range(length % PIECE or PIECE, length + 1, PIECE):
        answer, state = _reader()(graph, arrays, tokens[:, begin:end], state)
        begin = end
    return np.asarray(answer)


@functools.cache
def _reader() -> Callable[..., tuple[jax.Array, Any]]:
    """The compiled function that reads a piece."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
    def read(graph: Any, arrays: Any, tokens: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, arrays)
        model.eval()
        hidden, state = model.extend_hidden(tokens, state)
        return jnp.argmax(model.logits(hidden[:, -1]), -1), state

    return read


def accuracy_by_state(model: Any, task: dict[str, Any], length: int, count: int, batch_size: int = 32) -> float:
    """The fraction of ``count`` sequences of ``length`` tokens whose last answer is right."""
    import tasks

    examples = tasks.create(**{**task, "test_length": length, "num_eval": count}).examples("test")
    right = 0
    for start in range(0, count, batch_size):
        batch = [examples.get(i, None) for i in range(start, min(start + batch_size, count))]
        answers = answers_by_state(model, np.stack([example["tokens"] for example in batch]))
        right += int((answers == [example["targets"][-1] for example in batch]).sum())
    return right / count


def contest(quick: bool) -> Contest:
    task = {
        "name": "induction_heads",
        "length": 32 if quick else 256,
        "shortest_length": 8,
        "num_eval": 16 if quick else 256,
    }
    lengths = (300,) if quick else (64, 256, 1024, 8192, 65536)
    size = {"features": 16 if quick else 64, "depth": 1 if quick else 2}
    patient = {**size, "step_range": (1e-7, 1e-5)}

    def measure(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
        return {
            f"at_{n}": accuracy_by_state(model, dict(contestant.task), n, 16 if quick else 32 if n > 8192 else 128)
            for n in lengths
        }

    return Contest(
        contestants=[
            Contestant("mamba", "mamba_nano", task, patient),
            Contestant("mamba, released steps", "mamba_nano", task, size),
        ],
        steps=4 if quick else 2000,
        batch_size=8,
        learning_rate=3e-3,
        evaluations=2 if quick else 20,
        figures=("accuracy", *(f"at_{n}" for n in lengths)),
        measure=measure,
    )


def verdict(rows: Sequence[Row]) -> bool:
    """The accuracy of mamba at 8192 tokens is at least 0.95."""
    return medians(rows, "at_8192")["mamba"] >= 0.95


def run(arguments: list[str] | None = None) -> None:
    main("induction_heads", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
