"""Linear attention on Hopper GPUs: one pass over the chunks with the state in registers; two passes for few heads
(hopper_pieces.py).

A program computes 64 columns of one head's values, 32 for large key_dim, and iterates over the sequence in chunks of 64
tokens, while the tensor memory accelerator fetches the next ones. In a chunk, with G the sums of the log decays from
its start,

    O = (Q K^T * exp(G_i - G_j), at and below the diagonal) V + (Q exp(G)) S      S <- exp(G_C) S + K^T (V exp(G_C - G))

in 16-bit products with float32 sums; the state and the decays are float32. Only differences <= 0 are exponentiated, by
exp2, after masking. Run from the end with reading and writing exchanged, the same kernel computes what a token reads
from later ones. hopper_keys.py handles a decay per key dimension.

The gradient consists of three more linear attentions: for dQ, dO reads the memory of V^T K; for dK and dV, run from the
end, V and K read the memories of dO^T Q and Q^T dO. With a_i = q_i . dq_i and b_j = k_j . dk_j, the cotangent of a
token's log decay is the sum of a - b from the token to the end of its segment, plus the inner product of the forward
and backward states there.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import hopper
from pallas_kernels.linear_attention import hopper_chunks, hopper_keys, hopper_pieces
from pallas_kernels.linear_attention.call import LinearCall
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
from primitives.differentiation import differentiable

LARGEST = 256


def objection(call: LinearCall) -> str | None:
    """Why the kernel does not support the call, or None."""
    if (reason := call.kernel_objection()) is not None:
        return reason
    q, k, v = call.q, call.k, call.v
    if (reason := hopper.objection()) is not None:
        return reason
    if {q.dtype, k.dtype, v.dtype} != {jnp.dtype(jnp.bfloat16)}:
        return (
            "its products take bfloat16 (the range of float16 is too small for states); "
            f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}"
        )
    if q.shape[1] == 1:
        return "one token is no chunk"
    if max(q.shape[3], v.shape[3]) > LARGEST:
        return (
            f"key_dim and value_dim can be at most {LARGEST}, for the state to stay in registers; "
            f"got {q.shape[3]} and {v.shape[3]}"
        )
    if call.decay is None and not call.causal:
        return "without decay and without causality there is no recurrence"
    if call.scale == 0:
        return "its gradient divides by the scale, which is 0"
    return None


def linear_attention(call: LinearCall) -> tuple[jax.Array, jax.Array]:
    """The op."""
    # A chunk always has 64 tokens, the rows of one product.
    q, k, v, scale, state = call.q, call.k, call.v, call.scale, call.start
    batch, length, heads, value_dim = v.shape
    logs = None if call.decay is None else call.decay.astype(jnp.float32)
    per_key = logs is not None and logs.ndim == 4
    if logs is not None and not per_key:
        logs = jnp.broadcast_to(logs, (batch, length, heads))
    if call.causal:
        forward = functools.partial(_recurrence, Direction(False, False, scale, v.dtype))
        if per_key:
            forward = functools.partial(hopper_keys.recurrence, False, scale, v.dtype)
        pieces = hopper_pieces.count(batch, length, heads, q.shape[3], value_dim)
        return (
            forward(q, k, v, logs, state)
            if pieces == 1
            else hopper_pieces.run(forward, pieces, scale, q, k, v, logs, state)
        )
    assert logs is not None
    if per_key:
        return _per_key_both_ways(scale, q, k, v, logs, state), state
    # From the right the reading token's decay counts, not that of the token it reads: the decays move by one token.
    later = jnp.pad(logs[:, :-1], ((0, 0), (1, 0), (0, 0)))
    before, _ = _recurrence(Direction(False, False, scale, jnp.dtype(jnp.float32)), q, k, v, logs, state)
    behind, _ = _recurrence(Direction(True, True, scale, jnp.dtype(jnp.float32)), q, k, v, later, state)
    return (before + behind).astype(v.dtype), state


def _per_key_both_ways(
    scale: float, q: jax.Array, k: jax.Array, v: jax.Array, decay: jax.Array, state: jax.Array
) -> jax.Array:
    """Both directions with a decay per key dimension; the second one reads the flipped arrays."""
    single = jnp.dtype(jnp.float32)
    before, _ = hopper_keys.recurrence(False, scale, single, q, k, v, decay, state)
    q, k, values, decay = (jnp.flip(x, 1) for x in (q, k, v, decay))
    behind, _ = hopper_keys.recurrence(True, scale, single, q, k, values, decay, state)
    return (before + jnp.flip(behind, 1)).astype(v.dtype)


@dataclasses.dataclass(frozen=True)
class Direction:
    """The static settings of a run.

    Attributes:
      reverse: run from the end; a token then reads later ones.
      strict: a token does not read itself.
      scale: factor of the results.
      dtype: dtype of the results.
    """

    reverse: bool
    strict: bool
    scale: float
    dtype: Any

    def back(self) -> Direction:
        return dataclasses.replace(self, reverse=not self.reverse)


@differentiable(1, kernel=True)
def _recurrence(
    way: Direction, q: jax.Array, k: jax.Array, v: jax.Array, logs: jax.Array | None, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """All tokens in the order of ``way``: the results and the last state; ``logs`` is (batch, length, heads), ``state``
    the initial one.
    """
    out, states, _ = sweep(way, q, k, v, logs, state)
    return out, states[:, :, 0 if way.reverse else -1]


def _forward(way: Direction, *arrays: Any) -> tuple[Any, Any]:
    return _recurrence(way, *arrays), arrays


def _backward(way: Direction, arrays: Any, cotangents: Any) -> tuple[Any, ...]:
    q, k, v, logs, state = arrays
    d_out, d_last = cotangents
    d_out = d_out.astype(q.dtype)
    # Gradients of a group's queries and keys are summed over its heads, in float32.
    shared = v.shape[2] // q.shape[2]
    same = dataclasses.replace(way, dtype=q.dtype if shared == 1 else jnp.dtype(jnp.float32))
    d_last = d_last / way.scale
    decays = logs is not None
    d_q, reading, late = sweep(same, d_out, v, k, logs, jnp.swapaxes(state, 2, 3), q if decays else None)
    d_k, writing, early = sweep(same.back(), v, d_out, q, logs, jnp.swapaxes(d_last, 2, 3), k if decays else None)
    d_v, memory, _ = sweep(dataclasses.replace(way.back(), dtype=v.dtype), k, q, d_out, logs, d_last)
    d_logs = None
    if decays:
        last = jnp.swapaxes(d_last, 2, 3)
        if way.reverse:  # such a run has no state after the end
            reading, writing, late, early, last = writing, reading, early, late, jnp.zeros_like(last)
        d_logs = decay_cotangent(
            late - early, way.scale * meeting(reading, as_read(writing), as_read(last)), q.shape[1]
        )
    d_q, d_k = (
        x.reshape(*q.shape[:3], shared, q.shape[3]).sum(3).astype(q.dtype) if shared > 1 else x for x in (d_q, d_k)
    )
    return d_q, d_k, d_v, d_logs, way.scale * memory[:, :, -1 if way.reverse else 0]


_recurrence.define(_forward, _backward)


def meeting(before: jax.Array, behind: jax.Array, last: jax.Array) -> jax.Array:
    """Inner products (batch, heads, segments) of the two states at each segment's end.

    ``before`` and ``behind``, (batch, heads, segments, n, m), are the states of the tokens before each segment's end
    and of those after its start; ``last``, (batch, heads, n, m), is the state after the last segment.
    """
    return jnp.sum(before * jnp.concatenate([behind[:, :, 1:], last[:, :, None]], axis=2), axis=(3, 4))


def decay_cotangent(difference: jax.Array, met: jax.Array, length: int) -> jax.Array:
    """The cotangent of the log decays, (batch, length, heads), from each token's a - b, (batch, heads, padded length),
    and the result of :func:`meeting`.
    """
    batch, heads, padded = difference.shape
    segments, size = met.shape[2], hopper_chunks.SEGMENT * CHUNK
    difference = jnp.pad(difference, ((0, 0), (0, 0), (0, segments * size - padded))).reshape(
        batch, heads, segments, size
    )
    sums = lax.cumsum(difference, 3, reverse=True) + met[..., None]
    return jnp.moveaxis(sums.reshape(batch, heads, -1)[:, :, :length], 1, 2)


def sweep(
    way: Direction,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    logs: jax.Array | None,
    state: jax.Array,
    probe: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, Any]:
    """Runs the kernel; XLA does the rest: padding to whole tiles, and sums of the decays.

    Args:
      way: see :class:`Direction`.
      q, k, v: (batch, length, heads or a divisor of heads, dim) in 16 bits.
      logs: (batch, length, heads), natural logarithms, or None.
      state: (batch, heads, key_dim, value_dim) in float32, before the first token.
      probe: (batch, length, heads or a divisor, value_dim), whose inner products with the results are returned.

    Returns:
      The results (batch, length, heads, value_dim); the states after each segment of SEGMENT chunks, (batch, heads,
      segments, key_dim, value_dim), ordered by position, not by time; and with ``probe`` the products (batch, heads,
      padded length), else None.
    """
    batch, length = q.shape[:2]
    heads, key_dim, value_dim = state.shape[1:]
    keys, values = (padded_dim(n) for n in (key_dim, value_dim))
    q, k, v = whole(q, keys), whole(k, keys), whole(v, values)
    state = jnp.pad(state, ((0, 0), (0, 0), (0, keys - key_dim), (0, values - value_dim)))
    chunks, padded, width = q.shape[1] // CHUNK, q.shape[1], columns_of(keys)
    segments = -(-chunks // hopper_chunks.SEGMENT)
    operands = {"q": q, "k": k, "v": v, "state": state}
    if logs is not None:
        operands["decays"] = sums_in_chunks(logs, chunks)
    if probe is not None:
        operands["probe"] = whole(probe, values)
    struct = jax.ShapeDtypeStruct
    out: list[Any] = [
        struct((batch, padded, heads, values), way.dtype),
        struct((batch, heads, segments, keys, values), jnp.float32),
    ]
    scratch: dict[str, Any] = {
        "ready": plgpu.Barrier(num_arrivals=len(operands) - 1, num_barriers=STAGES),
        "q": tile(width, STAGES, CHUNK, keys),
        "k": tile(width, STAGES, CHUNK, keys),
        "v": tile(width, STAGES, CHUNK, width),
        "state": tile(width, keys, width),
        "out": tile(width, CHUNK, width, dtype=way.dtype),
    }
    # Otherwise they fit in the state's tile, which has been read by then.
    if width < CHUNK:
        scratch["scores"] = tile(width, CHUNK, CHUNK)
    # With float32 results one program fills a core's shared memory anyway: it holds the state while its registers are
    # needed for other values.
    if way.dtype != q.dtype:
        scratch["memory"] = tile(width, keys, width, dtype=jnp.float32)
    if logs is not None:
        scratch["decays"] = plgpu.SMEM((STAGES, 3, CHUNK), jnp.float32)
        # With the same dtype, values to be written and results share a tile, at different times.
        if way.dtype != q.dtype:
            scratch["written"] = tile(width, CHUNK, width)
    if probe is not None:
        out.append(struct((batch, heads, values // width, padded), jnp.float32))
        scratch |= {"probe": tile(width, STAGES, CHUNK, width), "dots": plgpu.SMEM((CHUNK,), jnp.float32)}

    def linear_attention_sweep(*references: Any) -> None:
        given = dict(zip(operands, references, strict=False))
        _body(way, given, list(references[len(given) : -1]), references[-1])

    blocks = values // width
    kernel = hopper.kernel(
        linear_attention_sweep,
        outputs=out,
        scratch=[scratch],
        grid={"batch": batch, "head": heads, "columns": blocks},
        warpgroups=1,
        cost=pl.CostEstimate(
            flops=2 * batch * heads * padded * (blocks * CHUNK * keys + CHUNK * values + 2 * keys * values),
            transcendentals=batch * heads * padded * CHUNK * blocks if logs is not None else 0,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in operands.values())
            + sum(math.prod(x.shape) * x.dtype.itemsize for x in out),
        ),
    )
    results, states, *dots = kernel(*operands.values())
    return results[:, :length, :, :value_dim], states[:, :, :, :key_dim, :value_dim], dots[0].sum(2) if dots else None


def sums_in_chunks(logs: jax.Array, chunks: int) -> jax.Array:
    """Sums of base-2 logarithms, (batch, heads, chunks, 3, CHUNK): from a chunk's start through each token, from after
    it to the chunk's end, and the first again.

    The first is stored twice because the compiler would merge two loads from one address, and the layouts of one number
    per row and one per column differ.
    """
    logs = jnp.maximum(logs * math.log2(math.e), FORGOTTEN)
    logs = jnp.moveaxis(jnp.pad(logs, ((0, 0), (0, chunks * CHUNK - logs.shape[1]), (0, 0))), 1, 2)
    logs = logs.reshape(*logs.shape[:2], chunks, CHUNK)
    behind = jnp.pad(logs[..., 1:], ((0, 0), (0, 0), (0, 0), (0, 1)))
    since = jnp.cumsum(logs, 3)
    return jnp.stack([since, lax.cumsum(behind, 3, reverse=True), since], axis=3)


def _body(way: Direction, given: dict[str, Any], made: list[Any], shared: dict[str, Any]) -> None:
    """One program: all chunks for 64 columns of one head's values.

    Args:
      way: see :class:`Direction`.
      given: references to q, k, v, the state and, if present, the decays and the probe.
      made: references to the results, the states and, with a probe, the products.
      shared: shared memory, by the name of its contents, and the barriers.
    """
    out, states, *dots = made
    batch, head, block = (lax.axis_index(name) for name in ("batch", "head", "columns"))
    width = shared["v"].shape[2]
    columns = pl.ds(block * width, width)
    dtype, heads, chunks = given["q"].dtype, out.shape[2], out.shape[1] // CHUNK

    def place(step: Any) -> Any:
        return chunks - 1 - step if way.reverse else step

    def fetch(step: Any, slot: Any) -> None:
        chunk = place(step)
        for name in [n for n in given if n not in ("state", "decays")]:
            own = lax.div(head, jnp.int32(heads // given[name].shape[2]))
            dims = columns if name in ("v", "probe") else slice(None)
            source = given[name].at[batch, pl.ds(chunk * CHUNK, CHUNK), own, dims]
            plgpu.copy_gmem_to_smem(source, shared[name].at[slot], shared["ready"].at[slot])
        if "decays" in given:
            plgpu.copy_gmem_to_smem(
                given["decays"].at[batch, head, chunk], shared["decays"].at[slot], shared["ready"].at[slot]
            )

    for step in range(min(STAGES, chunks)):
        fetch(jnp.int32(step), step)

    memory = shared.get("memory")

    def advance(step: Any, carry: jax.Array) -> jax.Array:
        state = carry if memory is None else hopper.load(memory)
        slot, chunk = lax.rem(step, jnp.int32(STAGES)), place(step)
        plgpu.barrier_wait(shared["ready"].at[slot])
        q, k, v = (shared[name].at[slot] for name in ("q", "k", "v"))
        shared["state"][...] = state.astype(dtype)
        plgpu.commit_smem()
        scores, carried = hopper.products((q, hopper.transposed(k)), (q, shared["state"]))
        score_tile, written = scores_of(shared), v
        if "decays" in given:
            since, until, again = (shared["decays"].at[slot, row] for row in range(3))
            score_tile[...] = (way.scale * scores * weights(way, since, again)).astype(dtype)
            read, write = (until, since) if way.reverse else (since, until)
            carried = carried * across(way.scale * jnp.exp2(by_row(read)), width)
            written = shared.get("written", shared["out"])
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            written[...] = (hopper.load(v).astype(jnp.float32) * across(jnp.exp2(by_row(write)), width)).astype(dtype)
            state = state if memory is None else hopper.load(memory)
            state = state * jnp.exp2(shared["decays"][slot, 0, CHUNK - 1])
        else:
            score_tile[...] = jnp.where(seen(way), way.scale * scores, 0.0).astype(dtype)
            carried = way.scale * carried
        plgpu.commit_smem()
        result, state = hopper.add_products((carried, score_tile, v), (state, hopper.transposed(k), written))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        shared["out"][...] = result.astype(way.dtype)
        if dots:
            shared["dots"][...] = jnp.sum(result * hopper.load(shared["probe"].at[slot]).astype(jnp.float32), axis=1)
        plgpu.commit_smem()
        rows = pl.ds(chunk * CHUNK, CHUNK)
        plgpu.copy_smem_to_gmem(shared["out"], out.at[batch, rows, head, columns])
        if dots:
            plgpu.copy_smem_to_gmem(shared["dots"], dots[0].at[batch, head, block, rows])

        @pl.when(step + STAGES < chunks)
        def _next() -> None:
            fetch(step + STAGES, slot)

        within = lax.rem(chunk, jnp.int32(hopper_chunks.SEGMENT))

        @pl.when(within == 0 if way.reverse else (within == hopper_chunks.SEGMENT - 1) | (chunk == chunks - 1))
        def _keep() -> None:
            states[batch, head, lax.div(chunk, jnp.int32(hopper_chunks.SEGMENT)), :, columns] = state

        if memory is None:
            return state
        memory[...] = state
        return carry

    start = hopper.load(given["state"].at[batch, head, :, columns])
    if memory is not None:
        memory[...] = start
        start = jnp.int32(0)
    lax.fori_loop(0, chunks, advance, start)
    plgpu.wait_smem_to_gmem(0)


def scores_of(shared: dict[str, Any]) -> Any:
    """The reference where scores are stored: their own tile, or the first rows of the state's, which has been read by
    then.
    """
    return shared["scores"] if "scores" in shared else shared["state"].at[pl.ds(0, CHUNK)]


def weights(way: Direction, since: Any, again: Any) -> jax.Array:
    """The decay of each token of a chunk (columns) when a token (rows) reads it; both references hold the decays from
    the chunk's start.
    """
    row, column = (
        across(by_row(since), CHUNK),
        lax.broadcast_in_dim(hopper.load(again, plgpu.Layout.WGMMA.reduce(0)), (CHUNK, CHUNK), (1,)),
    )
    return jnp.exp2(jnp.where(seen(way), column - row if way.reverse else row - column, -jnp.inf))


def seen(way: Direction) -> jax.Array:
    """Which tokens of a chunk (columns) a token (rows) reads."""
    row, column = (hopper.iota((CHUNK, CHUNK), axis) for axis in (0, 1))
    late, early = (column, row) if way.reverse else (row, column)
    return late > early if way.strict else late >= early
