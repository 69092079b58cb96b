"""Recall against the size of the state: what a layer recalls depends on how many numbers it keeps, and on how they are
written and read.

S. Arora et al., arXiv:2402.18668, figure 2 (recall grows with the state, whatever the model); Y. Zhang et al.,
arXiv:2409.07146 (slots that are read by a softmax); J. Du et al., arXiv:2502.13685 (several memories interfere less);
arXiv:2510.07019 (slots and a window under one softmax). Multi-query associative recall (arXiv:2312.04927), with one
recurrent layer of 32 channels and two heads, with each family's own key and value sizes and no channel mixing. Before
it, all models have the same attention over a token and the one before it, so that each token knows its predecessor and
the recurrent layer alone has to remember. "state" is the number of floating-point numbers that the layer keeps for a
row, including those of its own convolution and window. Medians of three seeds, after 1500 steps: the size of the state
does not order the models. RWKV-7 recalls 0.997 with 544 numbers, mLSTM 0.979 with 274; the largest state, MoM's of
4000, has learned no more than chance, and neither have HGRN2 and Longhorn; Mamba-2 has learned with one seed and not
with two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.claims.run import Contest, Contestant, Row, main, medians

if TYPE_CHECKING:
    from flax import nnx
    from matplotlib.figure import Figure

# A mixer's own convolution is left out where that is an option.
MIXERS: dict[str, dict[str, Any]] = {
    "GLA": {"name": "gated_linear_attention"},
    "mLSTM": {"name": "mlstm", "input_bias": 0.0},
    "HGRN2": {"name": "hgrn2"},
    "RetNet": {"name": "retention"},
    "GSA": {"name": "gated_slot_attention", "num_slots": 8},
    "NHA": {"name": "native_hybrid_attention", "num_slots": 8, "window": 8},
    "Mamba-2": {"name": "mamba2", "state_dim": 16, "head_dim": 32},
    "Longhorn": {"name": "longhorn"},
    "gated delta net": {"name": "gated_delta_net", "conv_size": None},
    "KDA": {"name": "kimi_delta_attention", "conv_size": None},
    "RWKV-7": {"name": "rwkv7", "zero_init": False},
    "MoM": {"name": "mixture_of_memories"},
}


def framed(mixer: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Options of a transformer whose second and last block has the mixer, and whose first attends over two tokens."""
    before = {"name": "attention", "window": 2, "rotary": 10000.0}
    size = {"features": 16 if quick else 32, "depth": 2, "num_heads": 2, "mlp": None, "embedding_std": 0.2}
    return {**size, "pattern": {"0": before, "1": mixer}}


def measured(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
    """The number of floating-point numbers in the state of the last block's mixer, for one row."""
    import jax
    import jax.numpy as jnp

    from zoo.backbones.model import mixers

    *_, last = mixers(model)
    leaves = jax.tree.leaves(jax.eval_shape(lambda: last.init_state(1, contestant.task["length"])))
    return {"state": float(sum(math.prod(leaf.shape) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)))}


def contest(quick: bool) -> Contest:
    pairs = 2 if quick else 8
    task = {"name": "multi_query_recall", "length": 4 * pairs, "test_length": 4 * pairs, "pairs": pairs}
    task |= {"vocab_size": 64, "num_eval": 16 if quick else 128}
    chosen = dict(list(MIXERS.items())[:2]) if quick else MIXERS
    return Contest(
        contestants=[
            Contestant(label, "transformer_nano", task, framed(mixer, quick)) for label, mixer in chosen.items()
        ],
        steps=4 if quick else 1500,
        batch_size=8 if quick else 32,
        learning_rate=1e-2,
        evaluations=2 if quick else 6,
        figures=("accuracy", "state"),
        measure=measured,
    )


def slots_recall(rows: Sequence[Row]) -> bool:
    """GSA's accuracy is above those of HGRN2, RetNet and Mamba-2, whose states are as large or larger."""
    accuracy = medians(rows, "accuracy")
    return all(accuracy["GSA"] > accuracy[label] for label in ("HGRN2", "RetNet", "Mamba-2"))


def memories_recall(rows: Sequence[Row]) -> bool:
    """MoM's accuracy is above that of the gated delta net."""
    accuracy = medians(rows, "accuracy")
    return accuracy["MoM"] > accuracy["gated delta net"]


def windows_recall(rows: Sequence[Row]) -> bool:
    """NHA's accuracy is above GSA's."""
    accuracy = medians(rows, "accuracy")
    return accuracy["NHA"] > accuracy["GSA"]


PAPER: Mapping[int, Callable[[Sequence[Row]], bool]] = {197: slots_recall, 193: memories_recall, 204: windows_recall}


def verdict(rows: Sequence[Row]) -> bool:
    """GSA's accuracy is above those of HGRN2, RetNet and Mamba-2, whose states are as large or larger; MoM's above that
    of the gated delta net; NHA's above GSA's.
    """
    return all(part(rows) for part in PAPER.values())


def draw(rows: Sequence[Row]) -> Figure:
    """Accuracy against the size of the state: a labeled point for each contestant, and a line over its seeds."""
    from matplotlib.figure import Figure

    from benchmarks.curves import centered

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes, state, accuracy = figure.subplots(), medians(rows, "state"), medians(rows, "accuracy")
    names = sorted(accuracy, key=lambda name: accuracy[name])
    most = max(state.values())
    # centered() separates by a factor: exponentials turn that into the difference wanted here.
    places = [math.log(place) for place in centered([math.exp(accuracy[name]) for name in names], math.exp(0.045))]
    for number, (name, place) in enumerate(zip(names, places, strict=True)):
        color, marker = f"C{number % 10}", "os"[number // 10 % 2]
        seeds = [row["test"]["accuracy"] for row in rows if row["label"] == name]
        axes.plot([state[name]] * 2, [min(seeds), max(seeds)], color=color, linewidth=1)
        axes.plot([state[name]], [accuracy[name]], marker, color=color, label=name)
        axes.annotate(
            name, (state[name], accuracy[name]), (1.25 * most, place), fontsize=9, color=color, va="center",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.4, "alpha": 0.6, "relpos": (0, 0.5)},
        )  # fmt: skip
    least = min(state.values())
    ticks = [2**power for power in range(math.ceil(math.log2(least)), math.ceil(math.log2(most)) + 1)]
    axes.set(xscale="log", xlim=(least / 1.15, 3 * most), xlabel="numbers of the state", ylabel="accuracy")
    axes.set_ylim(min(0.0, places[0] - 0.03), max(1.0, places[-1]) + 0.03)
    axes.minorticks_off()
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.grid(alpha=0.3)
    figure.suptitle("Recall of one layer against the size of its state")
    return figure


def run(arguments: list[str] | None = None) -> None:
    main("state_size", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
