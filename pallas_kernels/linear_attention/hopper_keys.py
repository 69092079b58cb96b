"""Linear attention with a decay per key dimension on Hopper: XLA applies the decays to queries, keys and scores, chunk
by chunk; the kernel carries the states.

With G the sums of a key dimension's log decays from the chunk's start, a chunk outputs (Q exp(G)) S + A V and updates
the state to exp(G_C) S + (K exp(G_C - G))^T V. A, the scores inside the chunk, is built from blocks of doubling size as
in the XLA implementation, from products of late queries and early keys, each decayed to the boundary between them: only
sums of non-positive numbers are exponentiated.

The kernel's gradient is computed by the same kernel: run from the end for V, and with the decays on the columns of the
state for Q and K. The gradient of a chunk's total decay is the sum of the contributions of its keys and queries to the
end of a segment, plus the inner product of the two states there.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import hopper
from pallas_kernels.linear_attention import hopper_chunks
from pallas_kernels.linear_attention.hopper_chunks import (
    CHUNK,
    FORGOTTEN,
    STAGES,
    across,
    as_read,
    by_row,
    columns_of,
    padded_dim,
    tile,
    whole,
)
from pallas_kernels.linear_attention.xla import blocks, double, neighbors
from primitives.differentiation import differentiable


def recurrence(
    strict: bool, scale: float, dtype: Any, q: jax.Array, k: jax.Array, v: jax.Array, decay: jax.Array, state: jax.Array
) -> Any:
    """All tokens in order: results (batch, length, heads, value_dim) in ``dtype`` and the last state.

    Args:
      strict: a token does not read itself.
      scale: factor of the results.
      dtype: dtype of the results.
      q, k: (batch, length, groups, key_dim).
      v: (batch, length, heads, value_dim).
      decay: (batch, length, heads, key_dim), natural logarithms.
      state: (batch, heads, key_dim, value_dim) in float32, before the first token.
    """
    length = q.shape[1]
    q, k, v, decay = (jnp.pad(x, ((0, 0), (0, -length % CHUNK), (0, 0), (0, 0))) for x in (q, k, v, decay))
    # Recomputed in the gradient: the intermediate results are several times larger than the inputs.
    weighed = jax.checkpoint(functools.partial(_weigh, strict, scale))(q, k, decay)
    out, state = _states(dtype, *weighed, v, state)
    return out[:, :length], state


def _weigh(strict: bool, scale: float, q: jax.Array, k: jax.Array, decay: jax.Array) -> tuple[jax.Array, ...]:
    """The arguments of :func:`_pass`: queries decayed from their chunk's start, keys decayed to its end, scores, and
    the base-2 logs of the chunks' total decays.
    """
    batch, length, heads, key_dim = decay.shape
    dtype = k.dtype

    def split(x: jax.Array) -> jax.Array:
        x = jnp.repeat(x, heads // x.shape[2], axis=2).reshape(batch, -1, CHUNK, heads, key_dim)
        return jnp.moveaxis(x, 3, 1).astype(jnp.float32)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 1, 3).reshape(batch, length, heads, key_dim).astype(dtype)

    queries, keys = scale * split(q), split(k)
    logs = split(jnp.maximum(decay * math.log2(math.e), FORGOTTEN))
    own = jnp.sum(queries * keys, axis=-1)[..., None, None]
    scores = jnp.zeros_like(own) if strict else own
    since, until = logs[..., None, :], jnp.zeros_like(logs)[..., None, :]
    while (size := since.shape[-2]) < CHUNK:
        late = (neighbors(blocks(queries, size))[1] * jnp.exp2(since[..., 1::2, :, :])).astype(dtype)
        early = (neighbors(blocks(keys, size))[0] * jnp.exp2(until[..., 0::2, :, :])).astype(dtype)
        corner = _scores(late, early)
        first, second = neighbors(scores)
        upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        scores = jnp.concatenate([upper, jnp.concatenate([corner, second], axis=-1)], axis=-2)
        since, until = double(since, until)
    since, until = since[..., 0, :, :], until[..., 0, :, :]
    return (
        join(queries * jnp.exp2(since)),
        join(keys * jnp.exp2(until)),
        scores[..., 0, :, :].astype(dtype),
        since[..., -1, :],
    )


def _scores(late: jax.Array, early: jax.Array) -> jax.Array:
    """(..., n, n), the products of (..., n, key_dim) with (..., n, key_dim); for a few tokens without matrix units."""
    if late.shape[-2] < 8:
        return jnp.sum(late[..., :, None, :].astype(jnp.float32) * early[..., None, :, :].astype(jnp.float32), axis=-1)
    return jnp.einsum("...ik,...jk->...ij", late, early, preferred_element_type=jnp.float32)


@differentiable(1, kernel=True)
def _states(
    dtype: Any, q: jax.Array, k: jax.Array, scores: jax.Array, total: jax.Array, v: jax.Array, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Results in ``dtype`` and the last state, from the arrays of :func:`_weigh`."""
    out, states = _pass(False, False, dtype, q, k, v, scores, total, state)
    return out, states[:, :, -1]


def _forward(dtype: Any, *arrays: Any) -> tuple[Any, Any]:
    return _states(dtype, *arrays), arrays


def _backward(dtype: Any, arrays: Any, cotangents: Any) -> tuple[jax.Array, ...]:
    q, k, scores, total, v, state = arrays
    d_out, d_last = cotangents[0].astype(v.dtype), cotangents[1]
    single = jnp.dtype(jnp.float32)
    d_v, memory = _pass(True, False, v.dtype, k, q, d_out, scores, total, d_last)
    d_q, before = _pass(False, True, single, d_out, v, k, None, total, jnp.swapaxes(state, 2, 3))
    d_k, behind = _pass(True, True, single, v, d_out, q, None, total, jnp.swapaxes(d_last, 2, 3))
    d_scores = jnp.einsum(
        "bcihv,bcjhv->bhcij",
        *(x.reshape(x.shape[0], -1, CHUNK, *x.shape[2:]) for x in (d_out, v)),
        preferred_element_type=single,
    )
    d_total = _total_cotangent(d_q * q, d_k * k, before, behind, d_last)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_scores.astype(scores.dtype), d_total, d_v, memory[:, :, 0]


_states.define(_forward, _backward)


def _total_cotangent(
    of_queries: jax.Array, of_keys: jax.Array, before: jax.Array, behind: jax.Array, d_last: jax.Array
) -> jax.Array:
    """Cotangents of the chunks' base-2 logs, (batch, heads, chunks, key_dim), from q dq and k dk per token and the
    states at the ends of segments.
    """
    batch, length, heads, key_dim = of_keys.shape
    chunks, segments = length // CHUNK, before.shape[2]
    of_queries, of_keys = (
        jnp.moveaxis(x.reshape(batch, chunks, CHUNK, heads, key_dim).sum(2), 1, 2) for x in (of_queries, of_keys)
    )
    behind = jnp.concatenate([behind[:, :, 1:], jnp.swapaxes(d_last, 2, 3)[:, :, None]], axis=2)
    met = jnp.sum(before * as_read(behind), axis=3)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, segments * hopper_chunks.SEGMENT - chunks), (0, 0)))
        return x.reshape(batch, heads, segments, hopper_chunks.SEGMENT, key_dim)

    difference = split(of_queries - of_keys)
    later = lax.cumsum(difference, 3, reverse=True) - difference
    whole_chunks = later - split(of_keys) + met[..., None, :]
    return math.log(2) * whole_chunks.reshape(batch, heads, -1, key_dim)[:, :, :chunks]


def _pass(
    reverse: bool,
    by_column: bool,
    dtype: Any,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scores: jax.Array | None,
    total: jax.Array,
    state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The kernel: out = q S + scores v, then S <- 2^total S + k^T v, chunk by chunk.

    Args:
      reverse: start from the last chunk; the scores are then transposed.
      by_column: ``total`` applies to the columns of the state (values), not to its rows (keys).
      dtype: dtype of the results.
      q, k, v: (batch, length, heads, dim) in 16 bits, whole chunks.
      scores: (batch, heads, chunks, CHUNK, CHUNK) in 16 bits, or None for none.
      total: (batch, heads, chunks, key_dim or value_dim).
      state: (batch, heads, key_dim, value_dim), before the first chunk.

    Returns:
      The results (batch, length, heads, value_dim); and the states after each segment of SEGMENT chunks, ordered by
      position, not by time.
    """
    heads, key_dim, value_dim = state.shape[1:]
    keys, values = padded_dim(key_dim), padded_dim(value_dim)
    width = columns_of(keys)
    total = jnp.pad(total, ((0, 0), (0, 0), (0, 0), (0, (values if by_column else keys) - total.shape[3])))
    operands = {"q": whole(q, keys), "k": whole(k, keys), "v": whole(v, values), "total": total}
    if scores is not None:
        operands["scores"] = scores
    operands["state"] = jnp.pad(state, ((0, 0), (0, 0), (0, keys - key_dim), (0, values - value_dim)))
    batch, length = q.shape[:2]
    struct = jax.ShapeDtypeStruct
    segments = -(-length // CHUNK // hopper_chunks.SEGMENT)
    out: list[Any] = [
        struct((batch, length, heads, values), dtype),
        struct((batch, heads, segments, keys, values), jnp.float32),
    ]
    scratch: dict[str, Any] = {name: tile(width, STAGES, CHUNK, keys) for name in ("q", "k")}
    scratch |= {
        "v": tile(width, STAGES, CHUNK, width),
        "total": plgpu.SMEM((STAGES, width if by_column else keys), jnp.float32),
    }
    scratch |= {"state": tile(width, keys, width), "out": tile(width, CHUNK, width, dtype=dtype)}
    if scores is not None:
        scratch["scores"] = tile(width, STAGES, CHUNK, CHUNK)
    scratch["ready"] = plgpu.Barrier(num_arrivals=len(operands) - 1, num_barriers=STAGES)

    def linear_attention_states(*references: Any) -> None:
        given = dict(zip(operands, references, strict=False))
        _body(reverse, by_column, given, references[len(given)], references[len(given) + 1], references[-1])

    kernel = hopper.kernel(
        linear_attention_states,
        outputs=out,
        scratch=[scratch],
        grid={"batch": batch, "head": heads, "columns": values // width},
        warpgroups=1,
        cost=pl.CostEstimate(
            flops=2 * batch * heads * length * values * (2 * keys + (0 if scores is None else CHUNK)),
            transcendentals=batch * heads * length // CHUNK * total.shape[3],
            bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in [*operands.values(), *out]),
        ),
    )
    results, states = kernel(*operands.values())
    return results[..., :value_dim], states[:, :, :, :key_dim, :value_dim]


def _body(reverse: bool, by_column: bool, given: dict[str, Any], out: Any, states: Any, shared: dict[str, Any]) -> None:
    """One program: all chunks for some columns of one head's values."""
    batch, head, block = (lax.axis_index(name) for name in ("batch", "head", "columns"))
    width, chunks = shared["v"].shape[2], out.shape[1] // CHUNK
    keys, columns = shared["state"].shape[0], pl.ds(block * width, width)

    def place(step: Any) -> Any:
        return chunks - 1 - step if reverse else step

    def fetch(step: Any, slot: Any) -> None:
        chunk = place(step)
        for name in [n for n in given if n != "state"]:
            if name in ("total", "scores"):
                source = given[name].at[batch, head, chunk]
                source = source.at[columns] if name == "total" and by_column else source
            else:
                own = lax.div(head, jnp.int32(out.shape[2] // given[name].shape[2]))
                source = given[name].at[
                    batch, pl.ds(chunk * CHUNK, CHUNK), own, columns if name == "v" else slice(None)
                ]
            plgpu.copy_gmem_to_smem(source, shared[name].at[slot], shared["ready"].at[slot])

    for step in range(min(STAGES, chunks)):
        fetch(jnp.int32(step), step)

    def advance(step: Any, state: jax.Array) -> jax.Array:
        slot, chunk = lax.rem(step, jnp.int32(STAGES)), place(step)
        plgpu.barrier_wait(shared["ready"].at[slot])
        q, k, v, total = (shared[name].at[slot] for name in ("q", "k", "v", "total"))
        shared["state"][...] = state.astype(q.dtype)
        if by_column:
            left = lax.broadcast_in_dim(jnp.exp2(hopper.load(total, plgpu.Layout.WGMMA.reduce(0))), (keys, width), (1,))
        else:
            left = across(jnp.exp2(by_row(total)), width)
        plgpu.commit_smem()
        reads = [q, shared["state"]]
        if "scores" in given:
            scores = shared["scores"].at[slot]
            reads += [hopper.transposed(scores) if reverse else scores, v]
        none = hopper.arrange(jnp.zeros((CHUNK, width), jnp.float32))
        result, state = hopper.add_products((none, *reads), (left * state, hopper.transposed(k), v))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        shared["out"][...] = result.astype(out.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(shared["out"], out.at[batch, pl.ds(chunk * CHUNK, CHUNK), head, columns])

        @pl.when(step + STAGES < chunks)
        def _next() -> None:
            fetch(step + STAGES, slot)

        within = lax.rem(chunk, jnp.int32(hopper_chunks.SEGMENT))

        @pl.when(within == 0 if reverse else (within == hopper_chunks.SEGMENT - 1) | (chunk == chunks - 1))
        def _keep() -> None:
            states[batch, head, lax.div(chunk, jnp.int32(hopper_chunks.SEGMENT)), :, columns] = state

        return state

    lax.fori_loop(0, chunks, advance, hopper.load(given["state"].at[batch, head, :, columns]))
    plgpu.wait_smem_to_gmem(0)
