"""Routed regions (BiFormer, arXiv:2303.08810): the tokens of a region attend to the regions that its routes name.

Tokens are stored region by region; ``routes`` is int (batch or 1, heads or 1, regions, topk), different regions in each
row. There are three
forms: a mask (:func:`mask`), the equation; copies of the keys of each region's regions (:func:`gathered`), which make
  regions rows of
the batch; and, for kernels that walk through lists of blocks, regions that are whole blocks (:func:`padded`) and no
copies. A copied key is read once and written once before it is read; padding a region by up to a half moves less than
that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention.call import AttentionCall
from pallas_kernels.attention.masks import Score

Attend = Callable[[AttentionCall], tuple[Any, ...]]
"""An implementation of the op, for calls with or without routes."""


def mask(routes: jax.Array, q_length: int, k_length: int) -> jax.Array:
    """What the routes allow: bool (batch or 1, heads or 1, q_length, k_length)."""
    regions = routes.shape[2]
    allowed = (routes[..., None] == jnp.arange(regions)).any(3)
    return jnp.repeat(jnp.repeat(allowed, q_length // regions, 2), k_length // regions, 3)


def gathered(attend: Attend, call: AttentionCall) -> tuple[Any, ...]:
    """The op by ``attend`` without routes: regions are rows of the batch, each with copies of its keys."""
    q, routes = call.q, call.routes
    assert routes is not None
    if routes.shape[1] > 1:
        return _head_by_head(attend, call, routes)
    batch, count = q.shape[0], routes.shape[2]
    row, chosen = jnp.arange(batch)[:, None, None], routes[:, 0]

    def queries(x: jax.Array) -> jax.Array:
        """(batch, q_length, ...) by regions."""
        return x.reshape(batch * count, -1, *x.shape[2:])

    def keys(x: jax.Array) -> jax.Array:
        """(batch, k_length, ...), those of each region's regions."""
        # The widest rows that can be copied: a token's heads together.
        return x.reshape(batch, count, x.shape[1] // count, -1)[row, chosen].reshape(batch * count, -1, *x.shape[2:])

    def pairs(x: jax.Array | None) -> jax.Array | None:
        """(batch or 1, heads or 1, q_length or 1, k_length or 1), rows of each region and columns of its regions."""
        if x is None:
            return None
        x = jnp.moveaxis(jnp.broadcast_to(x, (batch, *x.shape[1:])), 1, 3)  # (batch, q, k, heads)
        rows, columns, heads = x.shape[1:]
        x = (
            x.reshape(batch, count, -1, columns, heads)
            if rows > 1
            else jnp.broadcast_to(x[:, None], (batch, count, 1, columns, heads))
        )
        if columns > 1:
            x = jnp.swapaxes(x.reshape(batch, count, x.shape[2], count, -1, heads), 2, 3)
            x = jnp.swapaxes(x[row, jnp.arange(count)[:, None], chosen], 2, 3)
        return jnp.moveaxis(x.reshape(batch * count, x.shape[2], -1, heads), 3, 1)

    def whole(x: jax.Array) -> jax.Array:
        """(batch or 1, length) for each row of the batch."""
        return jnp.broadcast_to(x, (batch, x.shape[1]))

    at_q, at_k = map(whole, call.places)
    parts = call.replace(
        q=queries(q),
        k=keys(call.k),
        v=keys(call.v),
        bias=pairs(call.bias),
        mask=pairs(call.mask),
        query_positions=queries(at_q) if call.ordered else None,
        key_positions=keys(at_k) if call.ordered or call.key_positions is not None else None,
        query_segments=None if call.query_segments is None else queries(whole(call.query_segments)),
        key_segments=None if call.key_segments is None else keys(whole(call.key_segments)),
        routes=None,
        rows=None if call.rows is None else queries(jnp.broadcast_to(call.rows, (batch, *call.rows.shape[1:]))),
        relative_query=None if call.relative_query is None else queries(call.relative_query),
    )
    return jax.tree.map(lambda x: x.reshape(batch, -1, *x.shape[2:]), attend(parts))


def _head_by_head(attend: Attend, call: AttentionCall, routes: jax.Array) -> tuple[Any, ...]:
    """Heads whose keys are different copies, one after the other."""
    heads, repeats = call.q.shape[2], call.q.shape[2] // call.k.shape[2]

    def one(x: jax.Array | None, head: int, axis: int = 1) -> jax.Array | None:
        return x if x is None or x.shape[axis] == 1 else jax.lax.slice_in_dim(x, head, head + 1, axis=axis)

    results = []
    for head in range(heads):
        group = slice(head // repeats, head // repeats + 1)
        mine = call.replace(
            q=call.q[:, :, head : head + 1],
            k=call.k[:, :, group],
            v=call.v[:, :, group],
            bias=one(call.bias, head),
            mask=one(call.mask, head),
            sinks=None if call.sinks is None else call.sinks[head : head + 1],
            routes=routes[:, head : head + 1],
            score=_of_head(call.score, head),
            rows=one(call.rows, head, 2),
            relative_query=one(call.relative_query, head, 2),
            **{
                name: one(getattr(call, name), head, 0)
                for name in ("relative_bias", "relative_weight", "relative_keys")
            },
        )
        results.append(gathered(attend, mine))
    return jax.tree.map(lambda *x: jnp.concatenate(x, 2), *results)


def _of_head(score: Score | None, first: int) -> Score | None:
    """``score`` where heads are counted from ``first`` on."""
    return score and (lambda logits, head, *others: score(logits, first + head, *others))


def of_padded(score: Score | None, own: tuple[int, int], sizes: tuple[int, int]) -> Score | None:
    """``score`` for regions of queries and keys of ``sizes`` tokens that had their ``own``, at the positions that these
    have.
    """
    if score is None or own == sizes:
        return score

    def scored(logits: Any, head: Any, q: Any, k: Any, *rows: Any) -> Any:
        q, k = (at if n == size else at // size * n + at % size for at, n, size in zip((q, k), own, sizes, strict=True))
        return score(logits, head, q, k, *rows)

    return scored


def objection(asked: Callable[[AttentionCall], str | None], call: AttentionCall) -> str | None:
    """Why an implementation can't serve the call with copies of keys, or None; ``asked`` is its answer for a call
    without routes.
    """
    answers: list[str | None] = []

    def attend(part: AttentionCall) -> tuple[Any, ...]:
        answers.append(asked(part))
        return jnp.zeros((*part.q.shape[:3], part.v.shape[3])), None

    arrays = {name: x for name, (x, _) in call.arrays.items()}
    jax.eval_shape(lambda arrays: gathered(attend, call.replace(**arrays)), arrays)
    return next((answer for answer in answers if answer is not None), None)


def padded_size(length: int, regions: int, block: int) -> int | None:
    """Tokens of a region of whole blocks, None where more than half of them would be added."""
    size = length // regions
    whole = -(-size // block) * block
    return whole if 2 * whole <= 3 * size else None


def cleaned(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, routes: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Zeros for keys that a mask (batch or 1, 1, 1, k_length) hides and for queries whose regions hold no other: 0 *
    NaN is NaN.
    """
    if mask is None:
        return q, k, v
    regions = routes.shape[2]
    k, v = (jnp.where(mask[:, 0, 0, :, None, None], x, 0) for x in (k, v))
    real = mask.reshape(mask.shape[0], regions, -1).any(2)
    real, routes = (
        jnp.broadcast_to(real, (q.shape[0], regions)),
        jnp.broadcast_to(routes, (q.shape[0], *routes.shape[1:])),
    )
    seeing = real[jnp.arange(q.shape[0])[:, None, None, None], routes].any(3)
    seeing = jnp.repeat(jnp.swapaxes(seeing, 1, 2), q.shape[1] // regions, 1)
    return jnp.where(seeing[..., None], q, 0), k, v


def padded(x: jax.Array, regions: int, size: int, axis: int = 1) -> jax.Array:
    """``x`` with ``size`` tokens in each region, zeros (False) after its own."""
    own = x.shape[axis] // regions
    if own == size:
        return x
    x = x.reshape(*x.shape[:axis], regions, own, *x.shape[axis + 1 :])
    x = jnp.pad(x, [(0, size - own if a == axis + 1 else 0) for a in range(x.ndim)])
    return x.reshape(*x.shape[:axis], regions * size, *x.shape[axis + 2 :])


def unpadded(x: jax.Array, regions: int, own: int) -> jax.Array:
    """The inverse of :func:`padded`, for the length on axis 1; ``own`` tokens of each region."""
    size = x.shape[1] // regions
    return (
        x
        if size == own
        else x.reshape(x.shape[0], regions, size, *x.shape[2:])[:, :, :own].reshape(x.shape[0], -1, *x.shape[2:])
    )
