"""A stack of blocks: depth, patterns, rematerialisation, scan over layers, and features on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.block import Block
from layers.module import PureCall, pure_call

Call = Callable[[Block, jax.Array, Any], tuple[jax.Array, Any]]
"""How a block is applied: (block, x, what it alone is given) to (x, what it alone gives)."""


def drop_path_rates(rate: float, depth: int) -> list[float | None]:
    """Rates that grow linearly from 0 to ``rate`` over ``depth`` blocks; all None if ``rate`` is 0."""
    return [rate * i / max(depth - 1, 1) if rate else None for i in range(depth)]


class Stack(nnx.List):
    """Blocks applied one after another; a block's name is its index.

    ``scan`` runs equal neighbours (or equal groups of neighbours, for a pattern) as one ``lax.scan``,
    so that compile time does not grow with depth. The leaves are stacked inside the step: names,
    checkpoints and optimisers see unstacked ones. ``remat`` recomputes each block in the backward pass.
    """

    def __init__(self, blocks: Iterable[Block], *, remat: bool = False, scan: bool = False):
        super().__init__(blocks)
        self.remat, self.scan = remat, scan

    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, positions: jax.Array | None = None, *, capture: Sequence[int] = ()
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Applies all blocks.

        Args:
          x, mask, positions: as :class:`Mixer`.
          capture: indices of blocks whose outputs are wanted.

        Returns:
          The last output, and the captured outputs in the order of ``capture``.
        """

        def call(block: Block, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            if not self.remat:
                return block(x, mask, positions), None
            return pure_call(block, lambda block, *args: block(*args), x, mask, positions, transform=jax.checkpoint), None

        depth = len(self)
        wanted = {i % depth for i in capture}
        ends = sorted({*(i + 1 for i in wanted), depth})
        found: dict[int, jax.Array] = {}
        start = 0
        for end in ends:
            x, _ = self._run(range(start, end), call, x, [None] * (end - start))
            found[end - 1], start = x, end
        return x, [found[i % depth] for i in capture]

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32, context: jax.Array | None = None) -> tuple[Any, ...]:
        """The states of all blocks."""
        return tuple(block.init_state(batch_size, max_length, dtype, context) for block in self)

    def extend(  # type: ignore[override]  # a list of modules grows by append alone
        self, x: jax.Array, state: tuple[Any, ...], mask: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """As :meth:`Mixer.extend`, through all blocks."""
        return self._run(range(len(self)), lambda block, x, old: block.extend(x, old, mask), x, state)

    def _run(self, indices: Sequence[int], call: Call, x: jax.Array, inputs: Sequence[Any]) -> tuple[jax.Array, tuple[Any, ...]]:
        """Applies ``x, output = call(block, x, input)`` for each of the blocks; returns the last x and all outputs."""
        rows = [(self[i], given) for i, given in zip(indices, inputs, strict=True)]
        kinds = [_structure(*row) for row in rows] if self.scan else []
        outputs: list[Any] = []
        while rows:
            period, repeats = _period(kinds)
            done = period * repeats
            if repeats > 1:
                x, found = _scan([rows[start : start + period] for start in range(0, done, period)], call, x)
            else:
                (block, given), *_ = rows
                x, output = call(block, x, given)
                found = [output]
            outputs += found
            rows, kinds = rows[done:], kinds[done:]
        return x, tuple(outputs)


def _period(kinds: list[Any]) -> tuple[int, int]:
    """The shortest pattern that the first blocks repeat, and how often they do; 1, 1 where the first block starts none."""
    for period in range(1, len(kinds) // 2 + 1):
        repeats = len(kinds) // period
        if kinds[: period * repeats] == kinds[:period] * repeats:
            return period, repeats
    return 1, 1


def _structure(block: Block, given: Any) -> tuple[Any, ...]:
    """Equal for blocks that one program can run: same static structure, same shapes, of what each is given too."""
    graphdef, state = nnx.split(block)
    leaves, tree = jax.tree.flatten((state, given))
    return graphdef, tree, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _scan(groups: list[list[tuple[Block, Any]]], call: Call, x: jax.Array) -> tuple[jax.Array, list[Any]]:
    """Runs groups of equal structure as one ``lax.scan``."""

    def run(group: nnx.List, x: jax.Array, inputs: list[Any]) -> tuple[jax.Array, list[Any]]:
        outputs = []
        for block, given in zip(group, inputs, strict=True):
            x, output = call(block, x, given)
            outputs.append(output)
        return x, outputs

    def body(x: jax.Array, row: tuple[nnx.State, list[Any]]) -> tuple[jax.Array, Any]:
        (x, outputs), effects = pure(graphdef, row[0], x, row[1])
        return x, (outputs, effects)

    modules = [nnx.List([block for block, _ in group]) for group in groups]
    graphdef, pure = nnx.split(modules[0])[0], PureCall(run)
    rows = [(nnx.state(module), [given for _, given in group]) for module, group in zip(modules, groups)]
    x, found = jax.lax.scan(body, x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))
    outputs: list[Any] = []
    for i, module in enumerate(modules):
        values, effects = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        pure.apply(module, effects)
        outputs += values
    return x, outputs
