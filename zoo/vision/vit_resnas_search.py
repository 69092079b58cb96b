"""The search of ViT-ResNAS: Searching for Efficient Multi-Stage Vision Transformers (Liao et al., 2021,
arXiv:2109.00642), section 3.3.

    model = zoo.create("vit_resnas_nano", sampled=4)        trained as any model, it is the super-network
    found = search(model, score, limit=1e6)                  sub-networks within the limit, the best first
    best = subnetwork(model, found[0].stages)                a model of its own, with a part of the weights

Evolutionary search: of the sub-networks scored so far, the best are parents. Each round adds children that differ from
a parent in some of their numbers (mutation), and as many that take each number from one of two parents (crossover), all
within the limit and none scored before. The defaults are those of the authors' code. A sub-network is scored with the
weights of the super-network, without training of its own; the one that is found is trained anew in the paper.

A sub-network is the super-network with zeros in the rows of ``out`` and ``down`` that read what it does not have. So
one compiled program scores all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.state import assign, flatten
from zoo.vision.vit_resnas import Blocks, ViTResNAS

Genes = tuple[int, ...]
"""The numbers that make up a sub-network: heads and hidden features of each block."""
ATTEMPTS = 1000
"""Draws in a row that give nothing new within the limit, after which a round ends."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A sub-network.

    Attributes:
      stages: its heads and hidden widths, as the option of that name of the model.
      score: higher is better.
      cost: multiply-adds of its blocks for an image.
    """

    stages: tuple[Blocks, ...]
    score: float
    cost: int


def evolve(
    options: Sequence[Sequence[int]],
    score: Callable[[Genes], float],
    cost: Callable[[Genes], int],
    limit: float,
    *,
    population: int = 500,
    parents: int = 75,
    children: int = 75,
    rounds: int = 20,
    mutation: float = 0.3,
    seed: int = 0,
) -> dict[Genes, float]:
    """Evolutionary search.

    Args:
      options: the values of each number.
      score, cost: of what the numbers make up.
      limit: the highest cost.
      population: number drawn in the first round.
      parents: number of the best ones of which the next round is made.
      children: number of new ones in a round by mutation, and by crossover.
      rounds: number of rounds, the first included.
      mutation: probability that mutation draws a number anew.
      seed: of all draws.

    Returns:
      The score of each one that was scored, the best first, and of equal ones the cheapest.

    Raises:
      ValueError: nothing is within the limit, or fewer than 2 parents.
    """
    cheapest = cost(tuple(min(values) for values in options))
    if cheapest > limit:
        raise ValueError(f"nothing is within limit={limit:g}: the smallest costs {cheapest:g}")
    if parents < 2:
        raise ValueError(f"crossover takes two parents, got parents={parents}")
    rng = np.random.default_rng(seed)
    scored: dict[Genes, float] = {}

    def drawn() -> Genes:
        return tuple(int(rng.choice(values)) for values in options)

    def mutated() -> Genes:
        parent = best[rng.integers(len(best))]
        return tuple(new if rng.random() < mutation else old for new, old in zip(drawn(), parent, strict=True))

    def crossed() -> Genes:
        both = [best[i] for i in rng.choice(len(best), 2, replace=len(best) < 2)]
        return tuple(pair[int(rng.integers(2))] for pair in zip(*both, strict=True))

    def add(draw: Callable[[], Genes], count: int) -> None:
        failed = 0
        while count and failed < ATTEMPTS:
            genes = draw()
            if genes in scored or cost(genes) > limit:
                failed += 1
                continue
            scored[genes] = score(genes)
            count, failed = count - 1, 0

    def ranked() -> list[Genes]:
        return sorted(scored, key=lambda genes: (-scored[genes], cost(genes)))

    add(drawn, population)
    for _ in range(rounds - 1):
        best = ranked()[:parents] or [tuple(min(values) for values in options)]
        add(mutated, children)
        add(crossed, children)
    return {genes: scored[genes] for genes in ranked()}


def search(
    model: ViTResNAS, score: Callable[[dict[str, jax.Array]], float], limit: float, **options: int | float
) -> list[Found]:
    """Searches the sub-networks of a super-network.

    Args:
      model: a trained ViT-ResNAS with ``sampled``.
      score: of weights of the super-network by name, :func:`masked` for a sub-network; higher is better: the accuracy
        on images that the training did not see.
      limit: the highest :func:`block_cost`.
      options: of :func:`evolve`.

    Returns:
      The sub-networks that were scored, the best first.

    Raises:
      ValueError: as :func:`evolve`, or the model is no super-network.
    """
    c, weights = model.config, flatten(model)
    if not c.sampled:
        raise ValueError("the model is no super-network: its sub-networks were not trained; make it with sampled=")
    values = [c.counts(largest) for blocks in c.stages for block in blocks for largest in block]

    def stages(genes: Genes) -> tuple[Blocks, ...]:
        blocks = iter(zip(genes[::2], genes[1::2], strict=True))
        return tuple(tuple(next(blocks) for _ in own) for own in c.stages)

    def cost(genes: Genes) -> int:
        return block_cost(model, stages(genes))

    found = evolve(values, lambda genes: score(masked(weights, stages(genes), c.head_dims)), cost, limit, **options)  # type: ignore
    return [Found(stages(genes), value, cost(genes)) for genes, value in found.items()]


def block_cost(model: ViTResNAS, stages: Sequence[Blocks]) -> int:
    """The multiply-adds for an image of the attention and the MLPs of all blocks: what depends on ``stages``."""
    c, total, index = model.config, 0, 0
    for stage, blocks in enumerate(stages):
        for heads, hidden in blocks:
            extent = model.extents[index]
            tokens = 1 + (extent if isinstance(extent, int) else extent[0] * extent[1])
            width = heads * c.head_dims[stage]
            total += 2 * tokens * (2 * width + hidden) * model.width(index) + 2 * tokens**2 * width
            index += 1
    return total


def masked(weights: dict[str, jax.Array], stages: Sequence[Blocks], head_dims: Sequence[int]) -> dict[str, jax.Array]:
    """Weights of the super-network with which it computes what a sub-network does."""
    changed = dict(weights)
    blocks = [(count * head_dims[i], hidden) for i, stage in enumerate(stages) for count, hidden in stage]
    for index, sizes in enumerate(blocks):
        for name, kept in zip(("mixer.out", "channel.down"), sizes, strict=True):
            kernel = weights[f"blocks.{index}.{name}.kernel"]
            changed[f"blocks.{index}.{name}.kernel"] = jnp.where(jnp.arange(kernel.shape[0])[:, None] < kept, kernel, 0)
    return changed


def subnetwork(model: ViTResNAS, stages: tuple[Blocks, ...]) -> ViTResNAS:
    """A model of its own, in evaluation mode, with the weights that a sub-network has in the super-network."""
    config = dataclasses.replace(model.config, stages=stages, num_heads=stages[0][0][0], sampled=0)
    made, weights = type(model)(config, rngs=nnx.Rngs(0)), flatten(model)
    own = {name: weights[name][tuple(map(slice, array.shape))] for name, array in flatten(made).items()}
    assign(made, own)
    made.eval()
    return made
