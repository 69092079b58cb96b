"""A stack of blocks: rematerialization, scan over layers, reductions, values passed between blocks, features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import concrete_or_error

from layers.module import Module, PureCall, pure_call
from layers.reduction import TokenReduction
from layers.rematerialization import NOTHING, POLICIES, policy
from layers.tokens import Known, Tokens

Carry = tuple[jax.Array, Any]
"""What a block passes to the next: x, and the shared values beside it (None for none)."""
Call = Callable[[Any, Carry, Any], tuple[Carry, Any]]
"""How a block is applied: (block, carry, input of this block only) to (carry, output of this block only)."""
Row = tuple[Any, Any]
"""A block and its own input."""
Passed = tuple[jax.Array, Tokens]
"""Tokens and what is known of them."""


def drop_path_rates(rate: float, depth: int) -> list[float | None]:
    """Rates that increase linearly from 0 to ``rate`` over ``depth`` blocks; all None if ``rate`` is 0."""
    return [rate * i / max(depth - 1, 1) if rate else None for i in range(depth)]


class Stack(Module):
    """Blocks applied one after another; a block's name is its index.

    Between two blocks a :class:`layers.reduction.TokenReduction` may reduce the number of tokens: the one after block N
    is ``reductions.N``.

    A block is called as ``block(x, tokens)``; a causal one has ``init_state`` and ``extend`` like a :class:`Mixer`.
    Blocks may pass on values beside x: if ``shared`` is given, each is called as ``block(x, tokens, shared, own)`` and
    returns (x, shared), and from ``extend`` (x, state, shared). ``own`` is the block's slice of ``per_block``. A block
    that occurs at several places shares its parameters between them (ALBERT).

    Under ``jax.jit`` blocks of equal structure are traced once, wherever they are. ``scan`` runs equal neighbors (or
    equal groups of neighbors, for a pattern) as one ``lax.scan``, so that XLA compiles them once too. Parameters are
    stacked inside the step, which takes memory; names, checkpoints and optimizers see unstacked ones. ``remat`` is the
    name of the rematerialization policy of each block (:mod:`layers.rematerialization`).
    """

    repeats: ClassVar[bool] = True  # a block may occur at several places; its first name counts

    def __init__(
        self,
        blocks: Iterable[nnx.Module],
        *,
        reductions: Mapping[int, TokenReduction] | None = None,
        remat: str | bool = NOTHING,
        scan: bool = False,
    ):
        """Args:
          reductions: reductions after blocks, by the index of the block.
          remat: a policy's name; True is "block".
          scan: whether equal neighboring blocks run as one ``lax.scan``.

        Raises:
          ValueError: a reduction after a block that does not exist, or an unknown policy.
        """
        self.remat, self.scan, self._length = policy(remat), scan, 0
        for block in blocks:
            setattr(self, str(self._length), block)
            self._length += 1
        if missing := [i for i in reductions or {} if not 0 <= i < self._length]:
            raise ValueError(f"no reduction can follow block {missing[0]} of a stack of {self._length} blocks")
        self.reductions = nnx.Dict({str(i): reductions[i] for i in sorted(reductions)}) if reductions else None

    def __len__(self) -> int:
        return self._length

    @property
    def reduced_after(self) -> dict[int, TokenReduction]:
        """The reductions, by the index of the block that each follows."""
        return {int(i): reduction for i, reduction in (self.reductions or {}).items()}

    def __getitem__(self, index: int) -> Any:
        if not -self._length <= index < self._length:
            raise IndexError(f"block {index} of a stack of {self._length}")
        return getattr(self, str(index % self._length))

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(self._length))

    def __call__(
        self,
        x: jax.Array,
        tokens: Known = None,
        *,
        capture: Sequence[int] = (),
        shared: Any = None,
        per_block: Any = None,
    ) -> Any:
        """Applies all blocks.

        Args:
          x, tokens: as :class:`Mixer`.
          capture: indices of blocks whose outputs are returned; the reduction after a block is part of it.
          shared: values that blocks pass on beside x, a tree of arrays whose structure and shapes stay the same.
          per_block: a tree of arrays whose first axis is the depth: each block gets its slice.

        Returns:
          The last output, and the captured outputs in the order of ``capture``; if ``shared`` is given, also its last
          value.

        Raises:
          ValueError: ``shared`` with reductions that do not reduce it too.
        """
        (y, _), captured, last = self.through(x, tokens, capture=capture, shared=shared, per_block=per_block)
        found = [output for output, _ in captured]
        return (y, found) if shared is None else (y, found, last)

    def through(
        self,
        x: jax.Array,
        tokens: Known = None,
        *,
        capture: Sequence[int] = (),
        shared: Any = None,
        per_block: Any = None,
    ) -> tuple[Passed, list[Passed], Any]:
        """As :meth:`__call__`, but each output comes with what is known of its tokens; the third result is the last
        ``shared``, or None.

        Raises:
          ValueError: ``shared`` with reductions that do not reduce it too.
        """
        tokens, reductions = Tokens.of(tokens), self.reduced_after
        if shared is not None and not all(reduction.shares for reduction in reductions.values()):
            raise ValueError(
                "values passed between blocks may belong to tokens that a reduction removes: leave reductions out"
            )
        depth = len(self)
        own = _slices(per_block, depth)
        wanted = {i % depth for i in capture}
        ends = sorted({*(i + 1 for i in wanted), *(i + 1 for i in reductions), depth})
        found: dict[int, Passed] = {}
        carry, start = (x, shared), 0
        for end in ends:
            carry, _ = self._run(range(start, end), self._call_given(tokens), carry, own[start:end])
            if (reduction := reductions.get(end - 1)) is not None:
                y, left, *handed = reduction(carry[0], tokens, *([carry[1]] if reduction.shares else []))
                carry, tokens = (y, handed[0] if handed else None), Tokens.of(left)
            found[end - 1], start = (carry[0], tokens), end
        return found[depth - 1], [found[i % depth] for i in capture], carry[1]

    def _call_given(self, tokens: Tokens) -> Call:
        """The function that applies a block, given ``tokens``."""

        def call(block: Any, carry: Carry, own: Any) -> tuple[Carry, None]:
            if (transform := POLICIES[self.remat]) is None:
                return _called(block, *carry, tokens, own), None
            return pure_call(block, _called, *carry, tokens, own, transform=transform), None

        return call

    def init_state(
        self,
        batch_size: int,
        max_length: int | None = None,
        dtype: Any = jnp.float32,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
    ) -> tuple[Any, ...]:
        """The states of all blocks.

        Raises:
          ValueError: the stack has reductions, which need all tokens at once.
        """
        if self.reductions is not None:
            raise ValueError("a stack that reduces tokens can't read in pieces: its reductions need all tokens at once")
        more = () if context is None else (context, context_mask)
        return tuple(block.init_state(batch_size, max_length, dtype, *more) for block in self)

    def extend(
        self, x: jax.Array, state: tuple[Any, ...], tokens: Known = None, *, shared: Any = None, per_block: Any = None
    ) -> Any:
        """As :meth:`Mixer.extend`, through all blocks: (y, state), or (y, state, shared) if ``shared`` is given."""
        tokens = Tokens.of(tokens)

        def call(block: Any, carry: Carry, given: Any) -> tuple[Carry, Any]:
            (x, shared), (old, own) = carry, given
            if (transform := POLICIES[self.remat]) is None:
                return _extended(block, x, shared, old, tokens, own)
            return pure_call(block, _extended, x, shared, old, tokens, own, transform=transform)

        given = list(zip(state, _slices(per_block, len(self)), strict=True))
        (x, last), new = self._run(range(len(self)), call, (x, shared), given)
        return (x, new) if shared is None else (x, new, last)

    def _run(
        self, indices: Sequence[int], call: Call, carry: Carry, inputs: Sequence[Any]
    ) -> tuple[Carry, tuple[Any, ...]]:
        """Applies ``carry, output = call(block, carry, input)`` for each of the blocks; returns the last carry and all
        outputs.
        """
        rows = [(self[i], given) for i, given in zip(indices, inputs, strict=True)]
        staged = _is_staged(carry[0])
        # In a scan, all occurrences of a repeated block would draw the same random numbers.
        scan = self.scan and len({id(block) for block, _ in rows}) == len(rows)
        kinds = _kinds(rows) if scan or staged else list(range(len(rows)))
        programs: dict[int, _Program] = {}
        outputs: list[Any] = []
        start = 0
        while start < len(rows):
            period, repeats = _period(kinds[start:]) if scan else (1, 1)
            kind, end = kinds[start], start + period * repeats
            groups = [rows[i : i + period] for i in range(start, end, period)]
            if repeats > 1:
                carry, found = _Program(groups[0], call).scan(groups, carry)
            elif staged and kinds.count(kind) > 1:
                # JAX traces, differentiates and lowers the block once; XLA inlines it at each call.
                program = programs[kind] = programs.get(kind) or _Program(groups[0], call)
                carry, found = program.run(groups[0], carry)
            else:
                ((block, given),) = groups[0]
                carry, output = call(block, carry, given)
                found = [output]
            outputs += found
            start = end
        return carry, tuple(outputs)


def _called(block: Any, x: jax.Array, shared: Any, tokens: Tokens, own: Any) -> Carry:
    if shared is None and own is None:
        return block(x, tokens), None
    out = block(x, tokens, shared, own)
    return (out, None) if shared is None else out


def _extended(block: Any, x: jax.Array, shared: Any, state: Any, tokens: Tokens, own: Any) -> tuple[Carry, Any]:
    if shared is None and own is None:
        x, new = block.extend(x, state, tokens)
        return (x, None), new
    x, new, *handed = block.extend(x, state, tokens, shared, own)
    return (x, handed[0] if handed else None), new


def _slices(per_block: Any, depth: int) -> list[Any]:
    return [None if per_block is None else jax.tree.map(lambda leaf, i=i: leaf[i], per_block) for i in range(depth)]


def _is_staged(x: jax.Array) -> bool:
    """Whether ``x`` is traced by ``jax.jit``; otherwise operations run eagerly, also under ``jax.grad``."""
    try:
        concrete_or_error(None, x)
    except jax.errors.ConcretizationTypeError:
        return True
    return False


def _kinds(rows: list[Row]) -> list[int]:
    """A number for each block, equal for blocks that can share a program."""
    structures = [_structure(*row) for row in rows]
    return [structures.index(structure) for structure in structures]


def _structure(block: Any, given: Any) -> tuple[Any, ...]:
    """Equal for blocks that can share a program: same static structure and same shapes, also of their own inputs."""
    graphdef, state = nnx.split(block)
    leaves, tree = jax.tree.flatten((state, given))
    return graphdef, tree, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _period(kinds: list[int]) -> tuple[int, int]:
    """The length of the shortest repeated pattern of blocks from the first on, and its number of repeats; (1, 1)
    without repeats.
    """
    for period in range(1, len(kinds) // 2 + 1):
        repeats = len(kinds) // period
        if kinds[: period * repeats] == kinds[:period] * repeats:
            return period, repeats
    return 1, 1


class _Program:
    """The computation of a group of blocks as a function of arrays, shared by all groups of the same structure."""

    def __init__(self, group: list[Row], call: Call):
        def run(blocks: nnx.List, carry: Carry, inputs: list[Any]) -> tuple[Carry, list[Any]]:
            outputs = []
            for block, given in zip(blocks, inputs, strict=True):
                carry, output = call(block, carry, given)
                outputs.append(output)
            return carry, outputs

        self._graphdef, self._pure = nnx.graphdef(_blocks(group)), PureCall(run)
        self._traced_once = jax.jit(self._step)

    def _step(self, carry: Carry, arrays: tuple[nnx.State, list[Any]]) -> tuple[Carry, Any]:
        state, inputs = arrays
        (carry, outputs), effects = self._pure(self._graphdef, state, carry, inputs)
        return carry, (outputs, effects)

    def run(self, group: list[Row], carry: Carry) -> tuple[Carry, list[Any]]:
        """Runs one group; returns the last carry and all outputs."""
        carry, (outputs, effects) = self._traced_once(carry, _arrays(group))
        self._pure.apply(_blocks(group), effects)
        return carry, outputs

    def scan(self, groups: list[list[Row]], carry: Carry) -> tuple[Carry, list[Any]]:
        """Runs groups one after another as one ``lax.scan``."""
        carry, found = jax.lax.scan(
            self._step, carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(_arrays, groups))
        )
        outputs: list[Any] = []
        for i, group in enumerate(groups):
            values, effects = jax.tree.map(lambda leaf, i=i: leaf[i], found)
            self._pure.apply(_blocks(group), effects)
            outputs += values
        return carry, outputs


def _blocks(group: list[Row]) -> nnx.List:
    return nnx.List([block for block, _ in group])


def _arrays(group: list[Row]) -> tuple[nnx.State, list[Any]]:
    return nnx.state(_blocks(group)), [given for _, given in group]
