"""Streamed bytes: what is compressed, or kept in a recurrent state, is worth more than the tokens it replaces.

J. Rae et al., arXiv:1911.05507, table 4 (Compressive Transformer against Transformer-XL on PG-19), and D. Hutchins et
al., arXiv:2203.07852, table 1 (Block-Recurrent Transformer against Transformer-XL). The paper's models read books with
12 to 36 layers; ours have three layers of 64 channels and read Python's standard library in order, half a million bytes
of it. Segments have 64 bytes. Transformer-XL sees 64 before them, the Compressive Transformer 32 and 32 slots of 4, the
Block-Recurrent Transformer the 64 before each byte and 64 states, all at most 128 keys; beside them is Transformer-XL
without a memory. Bits per byte of the held-out modules, read in order too: over all, and by how far a byte is from the
start of its segment, where a memory counts most.

Medians of three seeds after these 250 steps: it does not hold. Distances are those of 131,072 bytes: there a memory is
worth 0.19 bits in the first 8 bytes of a segment and costs 0.02 to 0.04 in later ones, so that over all held-out bytes
it is worth nothing. Slots cost another 0.01, in the first 8 bytes and over all. The Block-Recurrent Transformer, whose
bytes do not see themselves and whose scores begin between -1 and 1, learns slower than the others everywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.claims.run import Contest, Contestant, Row, main, medians

if TYPE_CHECKING:
    from flax import nnx

PAPER = (122, 178)
XL, NONE, COMPRESSIVE, RECURRENT = "transformer-xl", "no memory", "compressive", "block-recurrent"


def models(segment: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """The contestants for segments of so many bytes."""
    half = segment // 2
    slots = {"segment": segment, "memory": half, "compressed": half, "rate": 4}
    return {
        NONE: ("transformer_xl_nano", {"segment": segment, "memory": 0}),
        XL: ("transformer_xl_nano", {"segment": segment, "memory": segment}),
        COMPRESSIVE: ("compressive_transformer_nano", slots),
        RECURRENT: ("block_recurrent_transformer_nano", {"window": segment, "states": segment}),
    }


def bits_by_distance(
    model: nnx.Module, examples: Any, segment: int, edges: Sequence[int], parts: int, lanes: int
) -> dict[str, float]:
    """Bits per byte of the first ``parts`` windows of ``lanes`` lanes, by the distance of a byte from the start of its
    segment: from one edge to the next.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    model.eval()
    graph, arrays = nnx.split(model)

    @jax.jit
    def read(arrays: nnx.State, state: Any, tokens: jax.Array, targets: jax.Array) -> tuple[jax.Array, Any]:
        made: Any = nnx.merge(graph, arrays)
        logits, state = made.extend(tokens, state)
        own = jnp.take_along_axis(logits.astype(jnp.float32), targets[..., None], -1)[..., 0]
        return jax.nn.logsumexp(logits.astype(jnp.float32), -1) - own, state

    reader: Any = model
    state, total, count = reader.init_state(lanes), np.zeros(segment), np.zeros(segment)
    for number in range(min(parts, examples.parts(lanes))):
        rows = [examples.part(number, lane, lanes) for lane in range(lanes)]
        batch = {name: np.stack([row[name] for row in rows]) for name in ("tokens", "targets", "real")}
        nats, state = read(arrays, state, batch["tokens"], batch["targets"])
        total += (np.asarray(nats) * batch["real"]).reshape(-1, segment).sum(0)
        count += batch["real"].reshape(-1, segment).sum(0)
    return {
        f"bytes_{begin}_to_{end}": float(total[begin:end].sum() / count[begin:end].sum() / math.log(2))
        for begin, end in itertools.pairwise(edges)
    }


def contest(quick: bool) -> Contest:
    import tasks

    segment = 8 if quick else 64
    edges = (0, segment // 8, segment // 4, segment // 2, segment)
    task: dict[str, Any] = {"name": "text", "sequence_length": 2 * segment if quick else 4 * segment, "order": "stream"}
    if quick:
        task["dataset"] = {"name": "files", "path": __file__}
    size = {"features": 64, "depth": 3, "num_heads": 4, "hidden": 256}
    size |= {"features": 16, "num_heads": 2, "hidden": 32} if quick else {}

    def measure(model: nnx.Module, contestant: Contestant) -> dict[str, float]:
        examples = tasks.create(**task).examples("test")
        return bits_by_distance(model, examples, segment, edges, 2 if quick else 64, 2 if quick else 8)

    return Contest(
        contestants=[
            Contestant(label, name, task, {**size, **options}, {"optimizer": {"options": {"b2": 0.95}}})
            for label, (name, options) in models(segment).items()
        ],
        steps=4 if quick else 250,
        batch_size=2 if quick else 8,
        learning_rate=3e-3,
        evaluations=1 if quick else 2,
        figures=("bits_per_byte", *(f"bytes_{begin}_to_{end}" for begin, end in itertools.pairwise(edges))),
        measure=measure,
    )


def verdict(rows: Sequence[Row]) -> bool:
    """Transformer-XL is better with its memory than without, and both others are better than it."""
    bits = medians(rows, "bits_per_byte")
    return bits[XL] < bits[NONE] and max(bits[COMPRESSIVE], bits[RECURRENT]) < bits[XL]


def run(arguments: list[str] | None = None) -> None:
    main("segments", __doc__ or "", contest, verdict, arguments)


if __name__ == "__main__":
    run()
