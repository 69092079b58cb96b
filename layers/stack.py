"""A stack of blocks: depth, patterns, rematerialisation, scan over layers, and features on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.block import Block
from layers.module import Sown, _collector, collecting, pure_call, rebind, unbind


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
        depth = len(self)
        wanted = {i % depth for i in capture}
        ends = sorted({*(i + 1 for i in wanted), depth})
        found: dict[int, jax.Array] = {}
        start = 0
        for end in ends:
            x = self._run(list(range(start, end)), x, mask, positions)
            found[end - 1], start = x, end
        return x, [found[i % depth] for i in capture]

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32, context: jax.Array | None = None) -> tuple[Any, ...]:
        """The states of all blocks."""
        return tuple(block.init_state(batch_size, max_length, dtype, context) for block in self)

    def extend(  # type: ignore[override]  # a list of modules grows by append alone
        self, x: jax.Array, state: tuple[Any, ...], mask: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """As :meth:`Mixer.extend`, through all blocks."""
        states = []
        for block, old in zip(self, state, strict=True):
            x, new = block.extend(x, old, mask)
            states.append(new)
        return x, tuple(states)

    def _run(self, indices: list[int], x: jax.Array, mask: jax.Array | None, positions: jax.Array | None) -> jax.Array:
        kinds = [_structure(self[i]) for i in indices] if self.scan else []
        while indices:
            period, repeats = _period(kinds)
            if repeats > 1:
                groups = [[self[i] for i in indices[start : start + period]] for start in range(0, period * repeats, period)]
                x = _scan(groups, self._block_call(), x, mask, positions)
            else:
                x = self._block_call()(self[indices[0]], x, mask, positions)
            done = period * repeats
            indices, kinds = indices[done:], kinds[done:]
        return x

    def _block_call(self) -> Callable[..., jax.Array]:
        def call(block: Block, *args: Any) -> jax.Array:
            return block(*args)

        if not self.remat:
            return call
        return lambda block, *args: pure_call(block, call, *args, transform=jax.checkpoint)


def _period(kinds: list[Any]) -> tuple[int, int]:
    """The shortest pattern that the first blocks repeat, and how often they do; 1, 1 where the first block starts none."""
    for period in range(1, len(kinds) // 2 + 1):
        repeats = len(kinds) // period
        if kinds[: period * repeats] == kinds[:period] * repeats:
            return period, repeats
    return 1, 1


def _structure(block: Block) -> tuple[Any, ...]:
    """Equal for blocks that one program can run: same static structure, same shapes."""
    graphdef, state = nnx.split(block)
    return graphdef, tuple((path, leaf.shape, leaf.dtype) for path, leaf in nnx.to_flat_state(nnx.as_pure(state)))


def _scan(groups: list[list[Block]], call: Callable[..., jax.Array], x: jax.Array, mask: jax.Array | None, positions: jax.Array | None) -> jax.Array:
    """Runs groups of equal structure as one ``lax.scan``; writes back statistics and re-sows what was sown."""
    lists = [nnx.List(group) for group in groups]
    splits: list[Any] = [nnx.split(group, nnx.Param, ...) for group in lists]
    graphdef = splits[0][0]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[(params, rest) for _, params, rest in splits])
    outer = _collector.get()
    labels: list[tuple[tuple[str, ...], str]] = []

    def body(x: jax.Array, layer: tuple[nnx.State, nnx.State]) -> tuple[jax.Array, tuple[nnx.State, list[Any]]]:
        group = nnx.merge(graphdef, *layer)
        if outer is None:
            sown = Sown(())
            for block in group:
                x = call(block, x, mask, positions)
        else:
            with collecting(*outer.kinds, name=outer.name) as sown:
                for block in group:
                    x = call(block, x, mask, positions)
        values = unbind(sown, group, labels)
        return x, (nnx.state(group, nnx.Not(nnx.Param)), values)

    x, (rests, values) = jax.lax.scan(body, x, stacked)
    for i, group in enumerate(lists):
        nnx.update(group, jax.tree.map(lambda leaf, i=i: leaf[i], rests))
        for block, below, name, value in ((group[int(b[0])], b[1:], n, v[i]) for (b, n), v in zip(labels, values, strict=True)):
            rebind(block, [(below, name)], [value])
    return x
