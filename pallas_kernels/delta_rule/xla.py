"""The chunkwise delta rule: matrix products inside a chunk, and a scan that carries the state between chunks.

With the state S at a chunk's start, D_ij the decay from step j to step i and e_i that from the chunk's start, step i
adds to the memory for its key

    u_i = beta_i (v_i - e_i k_i S - sum_{j<i} D_ij (k_i . k_j) u_j),   so that   u = T beta (v - e k S)
    T = (I + beta D K K^T, below the diagonal)^-1

and the outputs and the state after the chunk are those of a linear attention with values u. A diagonal block of 16 of T
is inverted by repeatedly doubling the size of inverted blocks, the blocks below by substitution: all entries of T and
of the intermediate results stay of the size of beta. The powers of a Neumann series do not: they explode when keys are
similar.

A decay per key dimension is inside the products of keys. The scores of a chunk, of queries and of keys, are then built
by doubling, as in :mod:`pallas_kernels.linear_attention.xla`: no exponent is ever positive. A read key takes the place
of k_i in the first equation and of the first K in the last.

For packed documents only pairs of steps within one document remain, also in T, which then has a diagonal block for
each.

The gradient stores the states at chunk boundaries and recomputes everything else.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.delta_rule.call import DeltaCall
from pallas_kernels.documents import Documents
from pallas_kernels.linear_attention.xla import double, join, neighbors, pairwise, split, split_starts
from primitives.differentiation import differentiable

BLOCK = 16

# The arrays of a chunk: q (batch, groups, tokens, key_dim), k (batch, groups, steps, key_dim), v (batch, groups,
# repeats, steps, value_dim), beta (batch, groups, repeats, steps, 1), decay (batch, groups, repeats, tokens, 1 or
# key_dim) or None, and the read key, as k, or None for k; besides them starts (batch, tokens) or None. The state is
# (batch, groups, repeats, key_dim, value_dim).
Chunk = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array | None]


def delta_rule(call: DeltaCall) -> tuple[jax.Array, jax.Array]:
    """The op."""
    q, k, v, beta, decay, read, scale = call.q, call.k, call.v, call.beta, call.decay, call.read_key, call.scale
    batch, length, groups, key_dim = q.shape
    rows, heads, value_dim = v.shape[1:]
    repeats = heads // groups
    values, rates = (x.reshape(batch, rows, groups, repeats, -1) for x in (v, beta))
    logs = None if decay is None else decay.reshape(batch, length, groups, repeats, -1)
    state = call.start.reshape(batch, groups, repeats, key_dim, value_dim)
    if length == 1:
        out, state = _token(scale, q, k, values, rates, logs, read, Documents.of(call.starts).carried(state))
    else:
        # A sequence shorter than a chunk is one chunk of the next power of two of tokens.
        steps = 1 << (call.steps - 1).bit_length()
        chunk_tokens = min(max(call.chunk_size // steps, 1), 1 << (length - 1).bit_length())
        out, state = _recurrence(chunk_tokens, scale, q, k, values, rates, logs, read, call.starts, state)
    return out.astype(v.dtype).reshape(batch, length, heads, value_dim), state.reshape(batch, heads, key_dim, value_dim)


def _token(
    scale: float,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    decay: jax.Array | None,
    read: jax.Array | None,
    state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One token, step by step, as used in decoding."""
    read = k if read is None else read
    q, k, v, beta, read = (x.astype(state.dtype) for x in (q, k, v, beta, read))
    factor = None if decay is None else jnp.exp(decay[:, 0].astype(state.dtype))
    for j in range(k.shape[1]):
        key, wanted = k[:, j, :, None], jnp.broadcast_to(read[:, j, :, None], state.shape[:4])
        # The decay goes to the key that reads, so that the state is read once and written once.
        held = jnp.einsum("bgrk,bgrkv->bgrv", wanted if factor is None else wanted * factor, state)
        update = beta[:, j] * (v[:, j] - held)
        state = state if factor is None else factor[..., None] * state
        state = state + key[..., None] * update[..., None, :]
        factor = None
    query = jnp.broadcast_to(q[:, 0, :, None], state.shape[:4])
    return scale * jnp.einsum("bgrk,bgrkv->bgrv", query, state)[:, None], state


@differentiable(2)
def _recurrence(
    chunk_tokens: int,
    scale: float,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    decay: jax.Array | None,
    read: jax.Array | None,
    starts: jax.Array | None,
    state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """All tokens in order, in the state's dtype."""
    return _forward(chunk_tokens, scale, q, k, v, beta, decay, read, starts, state)[0]


def _chunks(chunk_tokens: int, tokens: Any) -> Any:
    return tuple(split(x, chunk_tokens * (1 if x is None else x.shape[1] // tokens[0].shape[1])) for x in tokens)


def _forward(chunk_tokens: int, scale: float, *arrays: Any) -> tuple[Any, Any]:
    *tokens, starts, state = arrays

    def body(state: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
        chunk, starts = inputs
        after, out = _chunk(scale, Documents.of(starts), state, chunk)
        return after, (out, state)

    inputs = (_chunks(chunk_tokens, tokens), split_starts(starts, chunk_tokens))
    state, (out, boundaries) = jax.lax.scan(body, state, inputs)
    return (join(out, tokens[0].shape[1]), state), (tokens, starts, boundaries)


def _backward(chunk_tokens: int, scale: float, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    tokens, starts, boundaries = residuals
    d_out, d_state = cotangents

    def body(d_state: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
        before, chunk, starts, d_out = inputs
        _, pull = jax.vjp(functools.partial(_chunk, scale, Documents.of(starts)), before, chunk)
        return pull((d_state, d_out))

    chunks, begins = _chunks(chunk_tokens, tokens), split_starts(starts, chunk_tokens)
    d_state, d_chunks = jax.lax.scan(
        body, d_state, (boundaries, chunks, begins, split(d_out, chunk_tokens)), reverse=True
    )
    return (
        *(None if x is None else join(x, was.shape[1]) for x, was in zip(d_chunks, tokens, strict=True)),
        None,
        d_state,
    )


_recurrence.define(_forward, _backward)


def _chunk(scale: float, packed: Documents, state: jax.Array, chunk: Chunk) -> tuple[jax.Array, jax.Array]:
    """One chunk: the state after it, and its outputs (batch, groups, repeats, tokens, value_dim)."""
    *arrays, decay, read = chunk
    q, k, v, beta = (x.astype(state.dtype) for x in arrays)
    read = k if read is None else read.astype(state.dtype)
    if decay is not None and decay.shape[-1] > 1:
        return _chunk_per_key(scale, packed, state, q, k, v, beta, decay.astype(state.dtype), read)
    steps = k.shape[-2] // q.shape[-2]
    by_step = packed.repeat(steps)
    alike = jnp.einsum("bgik,bgjk->bgij", read, k)[:, :, None]
    scores = scale * jnp.einsum("bgik,bgjk->bgij", q, k)[:, :, None]
    below = by_step.seen(jnp.tril(jnp.ones(alike.shape[-2:], bool), -1), between=2)
    visible = packed.seen(
        jnp.repeat(jnp.tril(jnp.ones((q.shape[-2],) * 2, bool)), steps, axis=-1), between=2, keys=by_step
    )
    held = by_step.continuing(jnp.einsum("bgik,bgrkv->bgriv", read, state), -2)
    carried = packed.continuing(scale * jnp.einsum("bgik,bgrkv->bgriv", q, state), -2)
    state = packed.carried(state)
    if decay is None:
        u = unit_inverse(jnp.where(below, beta * alike, 0)) @ (beta * (v - held))
        return state + jnp.einsum("bgjk,bgrjv->bgrkv", k, by_step.last(u, -2)), carried + jnp.where(
            visible, scores, 0
        ) @ u
    between, since, until = pairwise(decay[..., 0].astype(state.dtype))
    since, until = jnp.exp(since)[..., None], jnp.exp(until)[..., None]
    # All steps of a token have the same decay.
    to_tokens = jnp.repeat(between, steps, axis=-1)
    to_steps = jnp.repeat(to_tokens, steps, axis=-2)
    lower = beta * alike * jnp.exp(jnp.where(below, to_steps, -jnp.inf))
    u = unit_inverse(lower) @ (beta * (v - jnp.repeat(since, steps, axis=-2) * held))
    out = since * carried + (scores * jnp.exp(jnp.where(visible, to_tokens, -jnp.inf))) @ u
    update = jnp.einsum("bgjk,bgrjv->bgrkv", k, jnp.repeat(until, steps, axis=-2) * by_step.last(u, -2))
    return since[..., -1:, :] * state + update, out


def _chunk_per_key(
    scale: float,
    packed: Documents,
    state: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    decay: jax.Array,
    read: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    # Batch, groups and repeats are merged: XLA is slower with axes of size 1 between them.
    state_shape, out_shape, (tokens, dim) = state.shape, (*decay.shape[:-1], v.shape[-1]), decay.shape[-2:]
    steps = k.shape[-2] // tokens
    q, k, read = (jnp.broadcast_to(x[:, :, None], (*decay.shape[:3], *x.shape[-2:])) for x in (scale * q, k, read))
    q, k, v, beta, decay, read, state = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v, beta, decay, read, state))
    packed = packed.of_each(q.shape[0] // state_shape[0])
    by_step = packed.repeat(steps)
    # All readers of the memory: for each token the read keys of its steps, then its query.
    readers = jnp.concatenate([x.reshape(-1, tokens, x.shape[-2] // tokens, dim) for x in (read, q)], axis=-2)
    keys = k.reshape(-1, tokens, steps, dim)
    # A step reads the steps before it, a query all steps of its token.
    own = jnp.tril(jnp.ones((steps + 1, steps), bool), -1)
    scores = jnp.where(own, readers @ jnp.swapaxes(keys, -1, -2), 0)  # for blocks of one token
    since, until = decay[..., None, :], jnp.zeros_like(decay)[..., None, :]
    while (size := since.shape[-2]) < tokens:
        late = readers.reshape(-1, tokens // size, size, steps + 1, dim)[:, 1::2] * jnp.exp(since[:, 1::2, :, None])
        early = keys.reshape(-1, tokens // size, size, steps, dim)[:, 0::2] * jnp.exp(until[:, 0::2, :, None])
        across = _joined(late) @ jnp.swapaxes(_joined(early), -1, -2)
        above, below = neighbors(scores)
        scores = jnp.concatenate([_beside(above, jnp.zeros_like(above)), _beside(across, below)], axis=-2)
        since, until = double(since, until)
    since, until = since[:, 0, :, None], until[:, 0, :, None]
    scores = scores.reshape(-1, tokens, steps + 1, tokens * steps)
    if packed.number is not None:
        same = packed.seen(jnp.ones((tokens, tokens * steps), bool), between=0, keys=by_step)
        scores = jnp.where(same[:, :, None], scores, 0)
    lower = scores[:, :, :steps].reshape(-1, tokens * steps, tokens * steps)
    held = packed.continuing((readers * jnp.exp(since)) @ state[:, None], 1)
    u = unit_inverse(beta * lower) @ (beta * (v - _joined(held[:, :, :steps])))
    out = held[:, :, steps] + scores[:, :, steps] @ u
    update = jnp.swapaxes(_joined(keys * jnp.exp(until)), -1, -2) @ by_step.last(u, -2)
    state = jnp.exp(since[:, -1, 0])[..., None] * packed.carried(state) + update
    return state.reshape(state_shape), out.reshape(out_shape)


def _joined(x: jax.Array) -> jax.Array:
    """(..., tokens, rows, dim) to (..., tokens * rows, dim)."""
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


@differentiable()
def unit_inverse(lower: jax.Array) -> jax.Array:
    """(I + lower)^-1 for ``lower`` (..., steps, steps), zero on and above the diagonal."""
    steps = lower.shape[-1]
    size = min(BLOCK, steps & -steps)
    diagonal = jnp.stack([lower[..., i : i + size, i : i + size] for i in range(0, steps, size)], axis=-3)
    first = min(2, size)
    inverse = jnp.eye(first, dtype=lower.dtype) - jnp.stack(
        [diagonal[..., i : i + first, i : i + first] for i in range(0, size, first)], axis=-3
    )
    while (done := inverse.shape[-1]) < size:
        # For two neighboring blocks A and D with C below A, the inverse of their union has -D^-1 C A^-1 in the place of
        # C.
        corners = jnp.stack(
            [diagonal[..., i + done : i + 2 * done, i : i + done] for i in range(0, size, 2 * done)], axis=-3
        )
        a, d = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        inverse = jnp.concatenate(
            [_beside(a, jnp.zeros_like(a)), _beside(-_product(_product(d, corners), a), d)], axis=-2
        )
    blocks = inverse[..., 0, :, :]
    done_rows = blocks[..., 0, :, :]
    for i in range(1, steps // size):
        row = lower[..., i * size : (i + 1) * size, : i * size]
        block = blocks[..., i, :, :]
        above = jnp.pad(done_rows, [(0, 0)] * (lower.ndim - 1) + [(0, size)])
        done_rows = jnp.concatenate([above, _beside(-_product(block, _product(row, done_rows)), block)], axis=-2)
    return done_rows


def _inverse_forward(lower: jax.Array) -> tuple[jax.Array, jax.Array]:
    inverse = unit_inverse(lower)
    return inverse, inverse


def _inverse_backward(inverse: jax.Array, d_inverse: jax.Array) -> tuple[jax.Array]:
    transposed = jnp.swapaxes(inverse, -1, -2)
    return (-_product(_product(transposed, d_inverse), transposed),)


unit_inverse.define(_inverse_forward, _inverse_backward)


def _beside(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.concatenate([left, right], axis=-1)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product in full precision on every device, because errors of the inverse are amplified later."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
