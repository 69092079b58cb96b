"""Shared parts of the TPU kernels: products on the matrix unit, sums of decays as products, and chunkwise recurrences.

A recurrence is defined by a function of one chunk, on two-dimensional float32 arrays. The forward kernel iterates over
the chunks and keeps the states of all heads that share keys in VMEM, together with the keys; for the gradient it also
writes the state at the start of each chunk. The backward kernel iterates in reverse, recomputes each chunk and
differentiates it inside the kernel. The function, and its derivative, must therefore be lowerable: products, selections
and elementwise arithmetic, but no sorts or cumulative sums.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from primitives import operations
from primitives.differentiation import differentiable

DTYPES = (jnp.float32, jnp.bfloat16)
LANES = 128
# Limits, in elements, of one state, of which a chunk makes several copies, and of the states of all heads that share
# keys; both are in VMEM.
STATE_LIMIT, STATES_LIMIT = 256 * 256, 2**20
# exp of it is 0 in float32, and sums of a chunk's decays stay finite, as products with zeros require.
LEAST_DECAY = -200.0

_FORMS = {"nn": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}


def objection(*arrays: Any) -> str | None:
    """Why no TPU kernel supports the dtypes of the arrays, or None."""
    odd = sorted({str(x.dtype) for x in arrays if x is not None and x.dtype not in DTYPES})
    return f"TPU kernels take float32 and bfloat16, not {', '.join(odd)}" if odd else None


def state_objection(key_dim: int, value_dim: int, repeats: int) -> str | None:
    """Why a recurrence with states (key_dim, value_dim) and ``repeats`` heads that share keys is not supported, or
    None.
    """
    size = key_dim * value_dim
    if size > STATE_LIMIT or size * repeats > STATES_LIMIT:
        return (
            f"{repeats} states of {key_dim} x {value_dim} do not fit VMEM "
            f"(limits: {STATE_LIMIT} numbers each, {STATES_LIMIT} in all)"
        )
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(a: jax.Array, b: jax.Array, form: str = "nn", dtype: Any = jnp.float32) -> jax.Array:
    """Matrix product, accumulated in float32, of operands rounded to ``dtype``: full float32 precision, or for bfloat16
    one pass of the matrix unit.

    Args:
      form: "nn" is a b, "nt" is a b^T, "tn" is a^T b.
    """
    precision = lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        a.astype(dtype), b.astype(dtype), (_FORMS[form], ((), ())), precision=precision,
        preferred_element_type=jnp.float32
    )  # fmt: skip


def _product_forward(a: jax.Array, b: jax.Array, form: str, dtype: Any) -> tuple[jax.Array, Any]:
    return product(a, b, form, dtype), (a, b)


def _product_backward(form: str, dtype: Any, operands: Any, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    if form == "nn":
        return product(d, b, "nt", dtype), product(a, d, "tn", dtype)
    if form == "nt":
        return product(d, b, "nn", dtype), product(d, a, "tn", dtype)
    return product(b, d, "nt", dtype), product(a, d, "nn", dtype)


product.defvjp(_product_forward, _product_backward)


def rows_and_columns(n: int) -> tuple[jax.Array, jax.Array]:
    """Row and column indices of an (n, n) array, int32."""
    return lax.broadcasted_iota(jnp.int32, (n, n), 0), lax.broadcasted_iota(jnp.int32, (n, n), 1)


def joins(n: int, size: int) -> jax.Array:
    """bool (n, n): whether row i is in the second half and column j in the first half of the same block of 2 *
    ``size``, a power of two.
    """
    i, j = rows_and_columns(n)
    return (i > j) & ((i ^ j) >= size) & ((i ^ j) < 2 * size)


def pairwise(decay: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For a row (1, chunk) of log decays g: the sums over (j, i], (chunk, chunk), and over [0, i] and (j, end], (chunk,
    1) each.

    Each is a sum of its own terms, never a difference of two longer sums. Entries of the first with j > i are 0.
    """
    i, j = rows_and_columns(decay.shape[1])
    decay = jnp.maximum(decay, LEAST_DECAY)
    up_to = jnp.where(j <= i, decay, 0.0)
    between = product(up_to, jnp.where(i > j, 1.0, 0.0))
    return between, jnp.sum(up_to, 1, keepdims=True), jnp.sum(jnp.where(j > i, decay, 0.0), 1, keepdims=True)


def column(row: jax.Array) -> jax.Array:
    """Transposes (1, n) to (n, 1). Outside kernels vectors are stored as rows: a column takes the memory of 128
    columns.
    """
    i, j = rows_and_columns(row.shape[1])
    return jnp.sum(jnp.where(i == j, row, jnp.zeros_like(row)), 1, keepdims=True)


def row(column: jax.Array) -> jax.Array:
    """Transposes (n, 1) to (1, n)."""
    i, j = rows_and_columns(column.shape[0])
    return jnp.sum(jnp.where(i == j, column, jnp.zeros_like(column)), 0, keepdims=True)


Chunk = Callable[..., tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static settings of a recurrence; hashable.

    Attributes:
      chunk: maps (state (key_dim, value_dim), *tokens) to (state, out (size, value_dim)), all float32 and
        two-dimensional: an array over tokens is (size, dim), or (1, size) if it has one number per token.
      size: tokens of a chunk; on a TPU a multiple of 128 if any array has one number per token, else of 16.
      interpret: what ``pallas_call`` gets under this name: :func:`pallas_kernels.dispatch.interpreted`.
    """

    chunk: Chunk
    size: int
    interpret: Any


def recurrence(plan: Plan, tokens: tuple[jax.Array, ...], state: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Runs all chunks in order.

    Args:
      tokens: (batch, heads, length, dim), or (batch, heads, length) for one number per token; some arrays may have
        fewer heads, all the same number, which divides that of the state. Zeros after the end must leave the state
        unchanged.
      state: float32 (batch, heads, key_dim, value_dim).
      dtype: of the outputs.

    Returns:
      (batch, heads, length, value_dim) and the last state.
    """
    length = tokens[0].shape[2]
    extra = -length % plan.size
    padded = tuple(jnp.pad(x, ((0, 0), (0, 0), (0, extra), *((0, 0),) * (x.ndim - 3))) for x in tokens)
    out, state = _recurrence(plan, dtype, tuple(x[:, :, None] if x.ndim == 3 else x for x in padded), state)
    return out[:, :, :length], state


@differentiable(2, kernel=True)
def _recurrence(plan: Plan, dtype: Any, tokens: tuple[jax.Array, ...], state: jax.Array) -> tuple[jax.Array, jax.Array]:
    out, last = _run_forward(plan, dtype, False, tokens, state)
    return out, last


def _forward(plan: Plan, dtype: Any, tokens: tuple[jax.Array, ...], state: jax.Array) -> tuple[Any, Any]:
    out, last, boundaries = _run_forward(plan, dtype, True, tokens, state)
    return (out, last), (tokens, boundaries)


def _backward(plan: Plan, dtype: Any, residuals: Any, cotangents: Any) -> tuple[Any, jax.Array]:
    tokens, boundaries = residuals
    d_out, d_last = cotangents
    *d_tokens, d_state = _run_backward(plan, tokens, boundaries, d_out, d_last)
    return tuple(d.astype(x.dtype) for d, x in zip(d_tokens, tokens, strict=True)), d_state


_recurrence.define(_forward, _backward)


def _is_row(x: Any) -> bool:
    return x.shape[2] == 1


@dataclasses.dataclass(frozen=True)
class _Walk:
    """The grid (batch, group, chunk, head of the group), with the chunks in order or, if ``back``, in reverse."""

    size: int
    batch: int
    groups: int
    chunks: int
    repeats: int
    back: bool

    @property
    def grid(self) -> tuple[int, int, int, int]:
        return self.batch, self.groups, self.chunks, self.repeats

    def chunk(self, c: Any) -> Any:
        return self.chunks - 1 - c if self.back else c

    def shares(self, x: Any) -> bool:
        """Whether all heads of a group share an array's values."""
        return x.shape[1] < self.groups * self.repeats

    def tokens(self, x: Any) -> pl.BlockSpec:
        """The block of a chunk, for an array over tokens."""

        def head(g: Any, r: Any) -> Any:
            return g if self.shares(x) else g * self.repeats + r

        if _is_row(x):
            return pl.BlockSpec((None, None, 1, self.size), lambda b, g, c, r: (b, head(g, r), 0, self.chunk(c)))
        return pl.BlockSpec((None, None, self.size, x.shape[3]), lambda b, g, c, r: (b, head(g, r), self.chunk(c), 0))

    def boundary(self, dims: tuple[int, ...]) -> pl.BlockSpec:
        """The block of the state at a chunk's start."""
        return pl.BlockSpec(
            (None, None, None, *dims), lambda b, g, c, r: (b, g * self.repeats + r, self.chunk(c), 0, 0)
        )

    def entering(self, dims: tuple[int, ...]) -> pl.BlockSpec:
        """The block of the initial states, which are fetched only with the first chunk."""
        return pl.BlockSpec(
            (None, None, *dims), lambda b, g, c, r: (b, g * self.repeats + jnp.where(c == 0, r, self.repeats - 1), 0, 0)
        )

    def leaving(self, dims: tuple[int, ...]) -> pl.BlockSpec:
        """The block of the final states, which are stored only with the last chunk."""
        return pl.BlockSpec(
            (None, None, *dims), lambda b, g, c, r: (b, g * self.repeats + jnp.where(c == self.chunks - 1, r, 0), 0, 0)
        )


def _walk(plan: Plan, tokens: tuple[jax.Array, ...], state: jax.Array, back: bool) -> _Walk:
    length = max(x.shape[3] if _is_row(x) else x.shape[2] for x in tokens)
    groups = min(x.shape[1] for x in tokens)
    return _Walk(plan.size, state.shape[0], groups, length // plan.size, state.shape[1] // groups, back)


def _blocks(plan: Plan, tokens: tuple[jax.Array, ...]) -> list[jax.ShapeDtypeStruct]:
    return [
        jax.ShapeDtypeStruct((1, plan.size) if _is_row(x) else (plan.size, x.shape[3]), jnp.float32) for x in tokens
    ]


def cost(steps: int, body: Callable[..., Any], blocks: Any, arrays: Any) -> pl.CostEstimate:
    """The cost of a kernel whose ``body`` runs ``steps`` times on ``blocks``, with ``arrays`` read or written once."""
    per_step = operations.count(body, *blocks)
    moved = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
    return pl.CostEstimate(flops=steps * per_step.flops, transcendentals=0, bytes_accessed=moved)


def _params() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"))


def _run_forward(plan: Plan, dtype: Any, keep: bool, tokens: tuple[jax.Array, ...], state: jax.Array) -> Any:
    walk = _walk(plan, tokens, state, False)
    (batch, heads), dims = state.shape[:2], state.shape[2:]

    def kernel(*refs: Any) -> None:
        *token_refs, first, out, last = refs[: len(tokens) + 3]
        states, c, r = refs[-1], pl.program_id(2), pl.program_id(3)

        @pl.when(c == 0)
        def _() -> None:
            states[r] = first[...]

        before = states[r]
        if keep:
            refs[-2][...] = before
        states[r], result = plan.chunk(before, *(x[...].astype(jnp.float32) for x in token_refs))
        out[...] = result.astype(out.dtype)

        @pl.when(c == walk.chunks - 1)
        def _() -> None:
            last[...] = states[r]

    shapes = [
        jax.ShapeDtypeStruct((batch, heads, walk.chunks * plan.size, dims[1]), dtype),
        jax.ShapeDtypeStruct(state.shape, jnp.float32),
    ]
    specs = [walk.tokens(shapes[0]), walk.leaving(dims)]
    if keep:
        shapes.append(jax.ShapeDtypeStruct((batch, heads, walk.chunks, *dims), jnp.float32))
        specs.append(walk.boundary(dims))
    blocks = [jax.ShapeDtypeStruct(dims, jnp.float32), *_blocks(plan, tokens)]
    return pl.pallas_call(
        kernel,
        grid=walk.grid,
        in_specs=[*map(walk.tokens, tokens), walk.entering(dims)],
        out_specs=specs,
        out_shape=shapes,
        scratch_shapes=[pltpu.VMEM((walk.repeats, *dims), jnp.float32)],
        compiler_params=_params(),
        cost_estimate=None
        if plan.interpret
        else cost(math.prod(walk.grid), plan.chunk, blocks, [tokens, state, shapes]),
        interpret=plan.interpret,
        name=f"{type(plan.chunk).__name__}_forward",
    )(*tokens, state)


def _run_backward(
    plan: Plan, tokens: tuple[jax.Array, ...], boundaries: jax.Array, d_out: jax.Array, d_last: jax.Array
) -> Any:
    walk = _walk(plan, tokens, d_last, True)
    dims = d_last.shape[2:]

    def pull(before: jax.Array, d_after: jax.Array, d_out: jax.Array, *blocks: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(plan.chunk, before, *blocks)[1]((d_after, d_out))

    def kernel(*refs: Any) -> None:
        n = len(tokens)
        before, d_out, d_last, d_first, d_states = refs[n], refs[n + 1], refs[n + 2], refs[-2], refs[-1]
        c, r = pl.program_id(2), pl.program_id(3)

        @pl.when(c == 0)
        def _() -> None:
            d_states[r] = d_last[...]

        blocks = (x[...].astype(jnp.float32) for x in refs[:n])
        d_states[r], *d_blocks = pull(before[...], d_states[r], d_out[...].astype(jnp.float32), *blocks)
        for x, ref, d in zip(tokens, refs[n + 3 :], d_blocks):
            if walk.shares(x):
                _add_heads(ref, d, r)
            else:
                ref[...] = d.astype(ref.dtype)

        @pl.when(c == walk.chunks - 1)
        def _() -> None:
            d_first[...] = d_states[r]

    # Gradients of arrays that several heads read are accumulated in float32.
    shapes = [jax.ShapeDtypeStruct(x.shape, jnp.float32 if walk.shares(x) else x.dtype) for x in tokens]
    shapes.append(jax.ShapeDtypeStruct(d_last.shape, jnp.float32))
    state = jax.ShapeDtypeStruct(dims, jnp.float32)
    blocks = [state, state, jax.ShapeDtypeStruct((plan.size, dims[1]), jnp.float32), *_blocks(plan, tokens)]
    moved = [tokens, boundaries, d_out, d_last, shapes]
    return pl.pallas_call(
        kernel,
        grid=walk.grid,
        in_specs=[*map(walk.tokens, tokens), walk.boundary(dims), walk.tokens(d_out), walk.entering(dims)],
        out_specs=[*map(walk.tokens, shapes[:-1]), walk.leaving(dims)],
        out_shape=shapes,
        scratch_shapes=[pltpu.VMEM((walk.repeats, *dims), jnp.float32)],
        compiler_params=_params(),
        cost_estimate=None if plan.interpret else cost(math.prod(walk.grid), pull, blocks, moved),
        interpret=plan.interpret,
        name=f"{type(plan.chunk).__name__}_backward",
    )(*tokens, boundaries, d_out, d_last)


def _add_heads(ref: Any, d: jax.Array, r: Any) -> None:
    @pl.when(r == 0)
    def _() -> None:
        ref[...] = d

    @pl.when(r > 0)
    def _() -> None:
        ref[...] += d
