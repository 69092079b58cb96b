"""The kernels of flash attention on TPU: one for the output, and one each for the gradients of queries, of keys and
values, and of a bias.

For each block of queries (or keys) a kernel iterates over a list of blocks of the other side, which is read by scalar
prefetch. The kernel for keys and values computes the logits transposed, so that numbers per query are row vectors and
no product needs a transpose. The kernel for the bias visits all blocks: a bias is at least as large as the logits of
one row of the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.tpu import tiles
from pallas_kernels.attention.tpu.tiles import Options, Where
from pallas_kernels.mosaic_tpu import column, row
from primitives.differentiation import differentiable


class Walk(NamedTuple):
    """Lists in the form that the kernels read: ``entries``, 2 * block + full, and ``counts``, their lengths, both
    flattened. The argument ``rows`` of the kernels is their (batch or 1, heads or 1).
    """

    entries: Any
    counts: Any


@differentiable(2, kernel=True)
def flash(
    options: Options,
    rows: tuple[int, int],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    where: Where,
    forth: Walk,
    back: Walk,
) -> tuple[jax.Array, jax.Array]:
    """The output (batch, heads, q_length, value_dim) and the log-sum-exp, float32 (batch, heads, q_length); lengths are
    whole blocks.
    """
    return _flash_forward(options, rows, q, k, v, where, forth, back)[0]


def _flash_forward(
    options: Options,
    rows: tuple[int, int],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    where: Where,
    forth: Walk,
    back: Walk,
) -> Any:
    out, top, total = _run_forward(options, rows, q, k, v, where, forth)
    empty = total == 0
    # All logits of a query that attends to nothing are -inf: any finite shift gives weights of 0.
    top, total = jnp.where(empty, 0.0, top), jnp.where(empty, 1.0, total)
    return (out, jnp.where(empty, -jnp.inf, top + jnp.log(total))[:, :, 0]), (
        q,
        k,
        v,
        where,
        forth,
        back,
        out,
        top,
        total,
    )


def _flash_backward(options: Options, rows: tuple[int, int], residuals: Any, cotangents: Any) -> Any:
    q, k, v, where, forth, back, out, top, total = residuals
    d_out, d_lse = (x.astype(jnp.float32) for x in cotangents)
    # Weights are exp(logits - top) / total, with the division applied to the other factor of their products:
    # subtracting the log-sum-exp would round large logits.
    if options.normalize == "softmax":
        delta = (jnp.sum(d_out * out.astype(jnp.float32), -1) - d_lse)[:, :, None] / total
        d_out = d_out / total[:, :, 0, :, None]
    else:
        delta = jnp.zeros_like(top)
    d_out = d_out.astype(v.dtype)
    d_q = _run_queries(options, rows, q, k, v, where, forth, d_out, top, delta)
    d_k, d_v = _run_keys(options, rows, q, k, v, where, back, d_out, top, delta)
    d_bias = None if where.bias is None else _run_bias(options, q, k, v, where, d_out, top, delta)
    return d_q, d_k, d_v, Where(None, None, None, None, None, d_bias), Walk(None, None), Walk(None, None)


flash.define(_flash_forward, _flash_backward)


def _visit(entry: Any, live: Any, step: Callable[[bool], None]) -> None:
    """Runs ``step(masked)`` for a list's entry, if it is ``live``."""
    pl.when(live & (entry & 1 == 1))(lambda: step(False))
    pl.when(live & (entry & 1 == 0))(lambda: step(True))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The block specs of one kernel.

    Attributes:
      at: maps the grid's indices and the prefetched arrays to (batch, query head, key-value head, query block, key
        block).
      transposed: whether the logits have keys as rows.
      options: the static settings.
    """

    options: Options
    at: Callable[..., tuple[Any, Any, Any, Any, Any]]
    transposed: bool

    def per_query(self, x: Any) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, None, self.options.block_q, x.shape[3]),
            lambda *g: (self.at(*g)[0], self.at(*g)[1], self.at(*g)[3], 0),
        )

    def per_key(self, x: Any) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, None, self.options.block_k, x.shape[3]),
            lambda *g: (self.at(*g)[0], self.at(*g)[2], self.at(*g)[4], 0),
        )

    def numbers(self, x: Any, keys: bool = False) -> pl.BlockSpec:
        """The block of (batch or 1, heads or 1, 1, length), one number per query (or key), as a row."""
        size, place = (self.options.block_k, 4) if keys else (self.options.block_q, 3)

        def at(*g: Any) -> tuple[Any, Any, int, Any]:
            found = self.at(*g)
            return (found[0] if x.shape[0] > 1 else 0), (found[1] if x.shape[1] > 1 else 0), 0, found[place]

        return pl.BlockSpec((None, None, 1, size), at)

    def backward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array, shift: jax.Array, delta: jax.Array
    ) -> list[pl.BlockSpec]:
        """The blocks of the arrays that every gradient kernel reads."""
        return [
            self.per_query(q),
            self.per_key(k),
            self.per_key(v),
            self.per_query(d_out),
            self.numbers(shift),
            self.numbers(delta),
        ]

    def where(self, where: Where) -> tuple[list[pl.BlockSpec], list[jax.Array]]:
        specs, arrays = [], []
        for x, keys in (
            (where.queries, False),
            (where.keys, True),
            (where.query_segments, False),
            (where.key_segments, True),
        ):
            if x is not None:
                arrays.append(x[:, :, None])
                specs.append(self.numbers(arrays[-1], keys))
        for x in (where.mask, where.bias):
            if x is not None:
                specs.append(self.pairs(x))
                arrays.append(jnp.swapaxes(x, 2, 3) if self.transposed else x)
        return specs, arrays

    def pairs(self, x: Any) -> pl.BlockSpec:
        """The block of (batch or 1, heads or 1, q_length, k_length), one number per query and key."""
        shape = (
            (self.options.block_k, self.options.block_q)
            if self.transposed
            else (self.options.block_q, self.options.block_k)
        )

        def place(*g: Any) -> tuple[Any, Any, Any, Any]:
            b, h, _, i, j = self.at(*g)
            return (b if x.shape[0] > 1 else 0, h if x.shape[1] > 1 else 0, *((j, i) if self.transposed else (i, j)))

        return pl.BlockSpec((None, None, *shape), place)


def _unpack(where: Where, refs: tuple[Any, ...]) -> tuple[Where, tuple[Any, ...]]:
    """Splits references into those for the fields of ``where``, None where absent, and the rest."""
    rest = list(refs)
    found = [None if x is None else rest.pop(0) for x in where]
    return Where(*found), tuple(rest)


def _list_row(rows: tuple[int, int], b: Any, h: Any) -> Any:
    return (b if rows[0] > 1 else 0) * rows[1] + (h if rows[1] > 1 else 0)


def _query_layout(
    options: Options, rows: tuple[int, int], repeats: int, count: int
) -> tuple[Layout, Callable[..., Any]]:
    """The layout for the grid (batch, head, query block, step), and the function that gives a list's index."""

    def line(b: Any, h: Any, i: Any) -> Any:
        return _list_row(rows, b, h) * count + i

    def at(b: Any, h: Any, i: Any, s: Any, entries: Any, counts: Any) -> tuple[Any, Any, Any, Any, Any]:
        return b, h, lax.div(h, repeats), i, entries[line(b, h, i) * options.steps[0] + s] >> 1

    return Layout(options, at, False), line


def _cost(options: Options, products: int, q: jax.Array, v: jax.Array, arrays: Any) -> pl.CostEstimate:
    """The cost of visiting all lists of every head, with ``products`` matrix products in all, each counted with the
    mean of the widths of q and v.
    """
    pairs = options.visits * options.block_q * options.block_k * q.shape[0] * q.shape[1]
    moved = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
    width = q.shape[3] + v.shape[3]
    return pl.CostEstimate(flops=pairs * (products * width + 8), transcendentals=pairs, bytes_accessed=moved)


def _params(axes: int, serial: int) -> pltpu.CompilerParams:
    semantics: Any = ("parallel",) * (axes - serial) + ("arbitrary",) * serial
    return pltpu.CompilerParams(dimension_semantics=semantics)


def _run_forward(
    options: Options, rows: tuple[int, int], q: jax.Array, k: jax.Array, v: jax.Array, where: Where, walk: Walk
) -> tuple[jax.Array, ...]:
    """The output, and for each query the largest logit and the sum of exp(logits - largest), (batch, heads, 1,
    q_length) each; -inf and 0 for sigmoid weights.
    """
    batch, heads, length, _ = q.shape
    count, steps, value_dim = length // options.block_q, options.steps[0], v.shape[3]
    layout, line = _query_layout(options, rows, heads // k.shape[1], count)
    where_specs, where_arrays = layout.where(where)

    def kernel(entries: Any, counts: Any, q: Any, k: Any, v: Any, *refs: Any) -> None:
        seen, (out, top_out, total_out, top, total, summed) = _unpack(where, refs)
        b, h, i, s = (pl.program_id(axis) for axis in range(4))
        at = line(b, h, i)
        entry = entries[at * steps + s]

        @pl.when(s == 0)
        def _() -> None:
            top[...] = jnp.full_like(top, -jnp.inf)
            total[...] = jnp.zeros_like(total)
            summed[...] = jnp.zeros_like(summed)

        def step(masked: bool) -> None:
            logits, _ = tiles.logits(
                options, q[...], k[...], seen.bias, h, lambda: tiles.positions(options, i, entry >> 1, seen, False)
            )
            allowed = tiles.allowed(options, i, entry >> 1, seen, False) if masked else None
            if options.normalize == "sigmoid":
                summed[...] += tiles.dot(
                    tiles.weights(options, logits, logits, allowed).astype(v.dtype), v[...], (1, 0)
                )
                return
            if allowed is not None:
                logits = jnp.where(allowed, logits, -jnp.inf)
            before = top[...]
            now = jnp.maximum(before, jnp.max(logits, 1, keepdims=True))
            shift = jnp.where(now == -jnp.inf, 0.0, now)
            weights, keep = jnp.exp(logits - shift), jnp.exp(before - shift)
            top[...] = now
            total[...] = keep * total[...] + jnp.sum(weights, 1, keepdims=True)
            summed[...] = keep * summed[...] + tiles.dot(weights.astype(v.dtype), v[...], (1, 0))

        _visit(entry, s < counts[at], step)

        @pl.when(s == steps - 1)
        def _() -> None:
            top_out[...], total_out[...] = row(top[...]), row(total[...])
            if options.normalize == "sigmoid":
                out[...] = summed[...].astype(out.dtype)
            else:
                out[...] = (summed[...] / jnp.where(total[...] == 0, 1.0, total[...])).astype(out.dtype)

    number = jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32)
    shapes = [jax.ShapeDtypeStruct((batch, heads, length, value_dim), q.dtype), number, number]
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, heads, count, steps),
            in_specs=[layout.per_query(q), layout.per_key(k), layout.per_key(v), *where_specs],
            out_specs=[layout.per_query(shapes[0]), layout.numbers(number), layout.numbers(number)],
            scratch_shapes=[pltpu.VMEM((options.block_q, n), jnp.float32) for n in (1, 1, value_dim)],
        ),
        out_shape=shapes,
        compiler_params=_params(4, 1),
        cost_estimate=_cost(options, 2, q, v, [q, k, v, where_arrays, shapes]),
        interpret=options.interpret,
        name="attention_forward",
    )(*walk, q, k, v, *where_arrays)


def _run_queries(
    options: Options,
    rows: tuple[int, int],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    where: Where,
    walk: Walk,
    d_out: Any,
    shift: Any,
    delta: Any,
) -> jax.Array:
    """The gradient of the queries."""
    batch, heads, length, head_dim = q.shape
    count, steps = length // options.block_q, options.steps[0]
    layout, line = _query_layout(options, rows, heads // k.shape[1], count)
    where_specs, where_arrays = layout.where(where)

    def kernel(
        entries: Any, counts: Any, q: Any, k: Any, v: Any, d_out: Any, shift: Any, delta: Any, *refs: Any
    ) -> None:
        seen, (d_q, summed, shifts, deltas) = _unpack(where, refs)
        b, h, i, s = (pl.program_id(axis) for axis in range(4))
        at = line(b, h, i)
        entry = entries[at * steps + s]

        @pl.when(s == 0)
        def _() -> None:
            summed[...] = jnp.zeros_like(summed)
            shifts[...], deltas[...] = column(shift[...]), column(delta[...])

        def step(masked: bool) -> None:
            allowed = tiles.allowed(options, i, entry >> 1, seen, False) if masked else None
            logits, slope = tiles.logits(
                options, q[...], k[...], seen.bias, h, lambda: tiles.positions(options, i, entry >> 1, seen, False)
            )
            weights = tiles.weights(options, logits, shifts[...], allowed)
            d_logits = tiles.gradient_of_logits(options, weights, tiles.dot(d_out[...], v[...], (1, 1)), deltas[...])
            summed[...] += tiles.dot(tiles.times(d_logits, slope).astype(k.dtype), k[...], (1, 0))

        _visit(entry, s < counts[at], step)

        @pl.when(s == steps - 1)
        def _() -> None:
            d_q[...] = (options.scale * summed[...]).astype(d_q.dtype)

    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, heads, count, steps),
            in_specs=[*layout.backward(q, k, v, d_out, shift, delta), *where_specs],
            out_specs=layout.per_query(q),
            scratch_shapes=[pltpu.VMEM((options.block_q, n), jnp.float32) for n in (head_dim, 1, 1)],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=_params(4, 1),
        cost_estimate=_cost(options, 3, q, v, [q, k, v, where_arrays, d_out, shift, delta, q]),
        interpret=options.interpret,
        name="attention_backward_queries",
    )(*walk, q, k, v, d_out, shift, delta, *where_arrays)


def _run_keys(
    options: Options,
    rows: tuple[int, int],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    where: Where,
    walk: Walk,
    d_out: Any,
    shift: Any,
    delta: Any,
) -> tuple[jax.Array, jax.Array]:
    """The gradients of keys and values: grid (batch, key-value head, key block, query head of it, step)."""
    batch, kv_heads, length, head_dim = k.shape
    repeats, count, steps, value_dim = q.shape[1] // kv_heads, length // options.block_k, options.steps[1], v.shape[3]

    def line(b: Any, h: Any, j: Any) -> Any:
        return _list_row(rows, b, h) * count + j

    def at(b: Any, g: Any, j: Any, r: Any, s: Any, entries: Any, counts: Any) -> tuple[Any, Any, Any, Any, Any]:
        h = g * repeats + r
        return b, h, g, entries[line(b, h, j) * steps + s] >> 1, j

    layout = Layout(options, at, True)
    where_specs, where_arrays = layout.where(where)

    def kernel(
        entries: Any, counts: Any, q: Any, k: Any, v: Any, d_out: Any, shift: Any, delta: Any, *refs: Any
    ) -> None:
        seen, (d_k, d_v, summed_k, summed_v) = _unpack(where, refs)
        b, g, j, r, s = (pl.program_id(axis) for axis in range(5))
        at = line(b, g * repeats + r, j)
        entry = entries[at * steps + s]

        @pl.when((r == 0) & (s == 0))
        def _() -> None:
            summed_k[...] = jnp.zeros_like(summed_k)
            summed_v[...] = jnp.zeros_like(summed_v)

        def step(masked: bool) -> None:
            allowed = tiles.allowed(options, entry >> 1, j, seen, True) if masked else None
            head = g * repeats + r
            logits, slope = tiles.logits(
                options, k[...], q[...], seen.bias, head, lambda: tiles.positions(options, entry >> 1, j, seen, True)
            )
            weights = tiles.weights(options, logits, shift[...], allowed)
            summed_v[...] += tiles.dot(weights.astype(d_out.dtype), d_out[...], (1, 0))
            d_logits = tiles.gradient_of_logits(options, weights, tiles.dot(v[...], d_out[...], (1, 1)), delta[...])
            summed_k[...] += tiles.dot(tiles.times(d_logits, slope).astype(q.dtype), q[...], (1, 0))

        _visit(entry, s < counts[at], step)

        @pl.when((r == repeats - 1) & (s == steps - 1))
        def _() -> None:
            d_k[...] = (options.scale * summed_k[...]).astype(d_k.dtype)
            d_v[...] = summed_v[...].astype(d_v.dtype)

    shapes = [jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)]
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, kv_heads, count, repeats, steps),
            in_specs=[*layout.backward(q, k, v, d_out, shift, delta), *where_specs],
            out_specs=[layout.per_key(x) for x in shapes],
            scratch_shapes=[pltpu.VMEM((options.block_k, n), jnp.float32) for n in (head_dim, value_dim)],
        ),
        out_shape=shapes,
        compiler_params=_params(5, 2),
        cost_estimate=_cost(options, 4, q, v, [q, k, v, where_arrays, d_out, shift, delta, shapes]),
        interpret=options.interpret,
        name="attention_backward_keys",
    )(*walk, q, k, v, d_out, shift, delta, *where_arrays)


def _run_bias(
    options: Options, q: jax.Array, k: jax.Array, v: jax.Array, where: Where, d_out: Any, shift: Any, delta: Any
) -> jax.Array:
    """The gradient of the bias: grid (its batch, its heads, query block, key block, batch and head that share it)."""
    assert where.bias is not None
    (batch, heads), (own_batch, own_heads) = q.shape[:2], where.bias.shape[:2]
    repeats, shared = heads // k.shape[1], (batch // own_batch, heads // own_heads)

    def at(own_b: Any, own_h: Any, i: Any, j: Any, b: Any, h: Any) -> tuple[Any, Any, Any, Any, Any]:
        head = own_h + h
        return own_b + b, head, lax.div(head, repeats), i, j

    layout = Layout(options, at, False)
    where_specs, where_arrays = layout.where(where)

    def kernel(q: Any, k: Any, v: Any, d_out: Any, shift: Any, delta: Any, *refs: Any) -> None:
        seen, (d_bias,) = _unpack(where, refs)
        i, j, b, h = (pl.program_id(axis) for axis in range(2, 6))

        @pl.when((b == 0) & (h == 0))
        def _() -> None:
            d_bias[...] = jnp.zeros_like(d_bias)

        allowed = tiles.allowed(options, i, j, seen, False)
        head = pl.program_id(1) + h
        logits = tiles.logits(
            options, q[...], k[...], seen.bias, head, lambda: tiles.positions(options, i, j, seen, False)
        )[0]
        weights = tiles.weights(options, logits, column(shift[...]), allowed)
        d_bias[...] += tiles.gradient_of_logits(
            options, weights, tiles.dot(d_out[...], v[...], (1, 1)), column(delta[...])
        )

    blocks = q.shape[2] // options.block_q, k.shape[2] // options.block_k
    shape = jax.ShapeDtypeStruct(where.bias.shape, jnp.float32)
    return pl.pallas_call(
        kernel,
        grid=(own_batch, own_heads, *blocks, *shared),
        in_specs=[*layout.backward(q, k, v, d_out, shift, delta), *where_specs],
        out_specs=layout.pairs(shape),
        out_shape=shape,
        compiler_params=_params(6, 2),
        cost_estimate=_cost(options, 2, q, v, [q, k, v, where_arrays, d_out, shift, delta, shape]),
        interpret=options.interpret,
        name="attention_backward_bias",
    )(q, k, v, d_out, shift, delta, *where_arrays).astype(where.bias.dtype)
