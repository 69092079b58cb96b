"""A stack of blocks: depth, patterns, rematerialization, scan over layers, and features on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import concrete_or_error

from layers.block import Block
from layers.module import PureCall, pure_call

Call = Callable[[Block, jax.Array, Any], tuple[jax.Array, Any]]
"""How a block is applied: (block, x, what it alone is given) to (x, what it alone gives)."""
Row = tuple[Block, Any]
"""A block and what it alone is given."""


def drop_path_rates(rate: float, depth: int) -> list[float | None]:
    """Rates that grow linearly from 0 to ``rate`` over ``depth`` blocks; all None if ``rate`` is 0."""
    return [rate * i / max(depth - 1, 1) if rate else None for i in range(depth)]


class Stack(nnx.List):
    """Blocks applied one after another; a block's name is its index.

    Under ``jax.jit`` equal blocks are traced once, wherever they are. ``scan`` runs equal neighbors (or equal
    groups of neighbors, for a pattern) as one ``lax.scan``, so that XLA compiles them once too. The leaves are
    stacked inside the step, which takes memory: names, checkpoints and optimizers see unstacked ones. ``remat``
    recomputes each block in the backward pass.
    """

    def __init__(self, blocks: Iterable[Block], *, remat: bool = False, scan: bool = False):
        super().__init__(blocks)
        self.remat, self.scan = remat, scan

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        *,
        capture: Sequence[int] = (),
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
            return pure_call(
                block, lambda block, *args: block(*args), x, mask, positions, transform=jax.checkpoint
            ), None

        depth = len(self)
        wanted = {i % depth for i in capture}
        ends = sorted({*(i + 1 for i in wanted), depth})
        found: dict[int, jax.Array] = {}
        start = 0
        for end in ends:
            x, _ = self._run(range(start, end), call, x, [None] * (end - start))
            found[end - 1], start = x, end
        return x, [found[i % depth] for i in capture]

    def init_state(
        self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32, context: jax.Array | None = None
    ) -> tuple[Any, ...]:
        """The states of all blocks."""
        return tuple(block.init_state(batch_size, max_length, dtype, context) for block in self)

    def extend(  # type: ignore[override]  # a list of modules grows by append alone
        self, x: jax.Array, state: tuple[Any, ...], mask: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """As :meth:`Mixer.extend`, through all blocks."""
        return self._run(range(len(self)), lambda block, x, old: block.extend(x, old, mask), x, state)

    def _run(
        self, indices: Sequence[int], call: Call, x: jax.Array, inputs: Sequence[Any]
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """Applies ``x, output = call(block, x, input)`` for each of the blocks; returns the last x and all outputs."""
        rows = [(self[i], given) for i, given in zip(indices, inputs, strict=True)]
        staged = _is_staged(x)
        kinds = _kinds(rows) if self.scan or staged else list(range(len(rows)))
        programs: dict[int, _Program] = {}
        outputs: list[Any] = []
        start = 0
        while start < len(rows):
            period, repeats = _period(kinds[start:]) if self.scan else (1, 1)
            kind, end = kinds[start], start + period * repeats
            groups = [rows[i : i + period] for i in range(start, end, period)]
            if repeats > 1:
                x, found = _Program(groups[0], call).scan(groups, x)
            elif staged and kinds.count(kind) > 1:
                # JAX traces, differentiates and lowers the block once; XLA copies it to each place where it is called.
                program = programs[kind] = programs.get(kind) or _Program(groups[0], call)
                x, found = program.run(groups[0], x)
            else:
                ((block, given),) = groups[0]
                x, output = call(block, x, given)
                found = [output]
            outputs += found
            start = end
        return x, tuple(outputs)


def _is_staged(x: jax.Array) -> bool:
    """Whether ``x`` is traced for a program (by ``jax.jit``): outside, operations run at once, also under ``jax.grad``."""
    try:
        concrete_or_error(None, x)
    except jax.errors.ConcretizationTypeError:
        return True
    return False


def _kinds(rows: list[Row]) -> list[int]:
    """A number for each block, equal for those that one program can run."""
    structures = [_structure(*row) for row in rows]
    return [structures.index(structure) for structure in structures]


def _structure(block: Block, given: Any) -> tuple[Any, ...]:
    """Equal for blocks that one program can run: same static structure, same shapes, of what each is given too."""
    graphdef, state = nnx.split(block)
    leaves, tree = jax.tree.flatten((state, given))
    return graphdef, tree, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _period(kinds: list[int]) -> tuple[int, int]:
    """The shortest pattern that the first blocks repeat, and how often; 1, 1 where the first block starts none."""
    for period in range(1, len(kinds) // 2 + 1):
        repeats = len(kinds) // period
        if kinds[: period * repeats] == kinds[:period] * repeats:
            return period, repeats
    return 1, 1


class _Program:
    """What a group of blocks does, as a function of arrays, for all groups of the same structure."""

    def __init__(self, group: list[Row], call: Call):
        def run(blocks: nnx.List, x: jax.Array, inputs: list[Any]) -> tuple[jax.Array, list[Any]]:
            outputs = []
            for block, given in zip(blocks, inputs, strict=True):
                x, output = call(block, x, given)
                outputs.append(output)
            return x, outputs

        self._graphdef, self._pure = nnx.graphdef(_blocks(group)), PureCall(run)
        self._traced_once = jax.jit(self._step)

    def _step(self, x: jax.Array, arrays: tuple[nnx.State, list[Any]]) -> tuple[jax.Array, Any]:
        state, inputs = arrays
        (x, outputs), effects = self._pure(self._graphdef, state, x, inputs)
        return x, (outputs, effects)

    def run(self, group: list[Row], x: jax.Array) -> tuple[jax.Array, list[Any]]:
        """Runs one group; returns the last x and all outputs."""
        x, (outputs, effects) = self._traced_once(x, _arrays(group))
        self._pure.apply(_blocks(group), effects)
        return x, outputs

    def scan(self, groups: list[list[Row]], x: jax.Array) -> tuple[jax.Array, list[Any]]:
        """Runs groups one after another as one ``lax.scan``."""
        x, found = jax.lax.scan(self._step, x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(_arrays, groups)))
        outputs: list[Any] = []
        for i, group in enumerate(groups):
            values, effects = jax.tree.map(lambda leaf, i=i: leaf[i], found)
            self._pure.apply(_blocks(group), effects)
            outputs += values
        return x, outputs


def _blocks(group: list[Row]) -> nnx.List:
    return nnx.List([block for block, _ in group])


def _arrays(group: list[Row]) -> tuple[nnx.State, list[Any]]:
    return nnx.state(_blocks(group)), [given for _, given in group]
