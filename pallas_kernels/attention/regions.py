"""Routed regions (BiFormer, arXiv:2303.08810): the tokens of a region attend to those of the regions in its routes.

Tokens are stored region by region; ``routes`` is int (batch or 1, heads or 1, regions, topk), with different regions in
each row. With ``key_regions`` the keys have another number of regions, and routes may be -1 (none). There are three
forms: a mask (:func:`mask`), the specification; copies of the keys of each region's routes (:func:`gathered`), with
regions as rows of the batch; and, for kernels that iterate over lists of blocks, regions padded to whole blocks
(:func:`padded`) without copies. A copied key is read and written once more before it is used; padding a region by up to
a half moves less data than that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention.call import AttentionCall
from pallas_kernels.attention.masks import Score

Attend = Callable[[AttentionCall], tuple[Any, ...]]
"""An implementation of the op."""


def mask(routes: jax.Array, q_length: int, k_length: int, key_regions: int | None = None) -> jax.Array:
    """The routes as a mask: bool (batch or 1, heads or 1, q_length, k_length)."""
    regions = routes.shape[2]
    key_regions = key_regions or regions
    allowed = (routes[..., None] == jnp.arange(key_regions)).any(3)
    return jnp.repeat(jnp.repeat(allowed, q_length // regions, 2), k_length // key_regions, 3)


def gathered(attend: Attend, call: AttentionCall) -> tuple[Any, ...]:
    """The op by ``attend`` without routes: regions become rows of the batch, each with copies of its keys.

    Memory is proportional to the number of regions times that of the keys that each attends to. Heads with their own
    routes are computed one after the other, and recomputed in the backward pass.
    """
    q, routes = call.q, call.routes
    assert routes is not None
    if routes.shape[1] > 1:
        return _head_by_head(attend, call)
    batch, count, key_count = q.shape[0], routes.shape[2], call.key_regions or routes.shape[2]
    row, chosen = jnp.arange(batch)[:, None, None], routes[:, 0]
    if call.key_regions is not None:
        chosen = jnp.maximum(chosen, 0)

    def queries(x: jax.Array) -> jax.Array:
        """Splits (batch, q_length, ...) into regions."""
        return x.reshape(batch * count, -1, *x.shape[2:])

    def keys(x: jax.Array) -> jax.Array:
        """Copies, from (batch, k_length, ...), the keys of each region's routes."""
        # Copies all heads of a token together: the widest possible rows.
        return x.reshape(batch, key_count, x.shape[1] // key_count, -1)[row, chosen].reshape(
            batch * count, -1, *x.shape[2:]
        )

    def pairs(x: jax.Array | None) -> jax.Array | None:
        """Copies, from (batch or 1, heads or 1, q_length or 1, k_length or 1), the rows of each region and the columns
        of its routes.
        """
        if x is None:
            return None
        x = jnp.moveaxis(jnp.broadcast_to(x, (batch, *x.shape[1:])), 1, 3)  # (batch, q, k, heads)
        rows, columns, heads = x.shape[1:]
        if rows == 1 and columns > 1:
            x = keys(x[:, 0])[:, None]
        elif rows == 1:
            x = jnp.repeat(x, count, 0)
        else:
            x = x.reshape(batch, count, -1, columns, heads)
            if columns > 1:
                x = jnp.swapaxes(x.reshape(batch, count, x.shape[2], key_count, -1, heads), 2, 3)
                x = jnp.swapaxes(x[row, jnp.arange(count)[:, None], chosen], 2, 3)
            x = x.reshape(batch * count, x.shape[2], -1, heads)
        return jnp.moveaxis(x, 3, 1)

    def whole(x: jax.Array) -> jax.Array:
        """Broadcasts (batch or 1, length) to (batch, length)."""
        return jnp.broadcast_to(x, (batch, x.shape[1]))

    at_q, at_k = map(whole, call.places)
    key_positions = keys(at_k) if call.ordered or not call.lacks("key_positions") else None
    if call.key_regions is not None:
        # Keys copied for the route -1 get no position.
        real = jnp.repeat(routes[:, 0] >= 0, call.k.shape[1] // key_count, 2)
        real = jnp.broadcast_to(real, (batch, *real.shape[1:])).reshape(batch * count, -1)
        key_positions = jnp.where(real, keys(at_k), -1)
    parts = call.replace(
        q=queries(q),
        k=keys(call.k),
        v=keys(call.v),
        bias=pairs(call.bias),
        bias_rest=pairs(call.bias_rest),
        mask=pairs(call.mask),
        query_positions=queries(at_q) if call.ordered else None,
        key_positions=key_positions,
        query_segments=None if call.query_segments is None else queries(whole(call.query_segments)),
        key_segments=None if call.key_segments is None else keys(whole(call.key_segments)),
        routes=None,
        key_regions=None,
        rows=None if call.rows is None else queries(jnp.broadcast_to(call.rows, (batch, *call.rows.shape[1:]))),
        relative_query=None if call.relative_query is None else queries(call.relative_query),
    )
    return jax.tree.map(lambda x: x.reshape(batch, -1, *x.shape[2:]), attend(parts))


def _head_by_head(attend: Attend, call: AttentionCall) -> tuple[Any, ...]:
    """Computes heads with different routes one after the other."""
    heads, own = call.q.shape[2], {}
    for name, (x, axes) in call.arrays.items():
        if "h" in axes and (x.shape[axis := axes.index("h")] > 1 or name in ("k", "v")):
            own[name] = jnp.moveaxis(jnp.repeat(x, heads // x.shape[axis], axis), axis, 0)

    def one(turn: tuple[jax.Array, dict[str, jax.Array]]) -> tuple[Any, ...]:
        head, arrays = turn
        mine = call.replace(**{n: jnp.expand_dims(x, call.axes[n].index("h")) for n, x in arrays.items()})
        if call.score is not None:
            # In the loop the head is not static: it is passed to the score as one of the rows.
            number = jnp.full((1, call.q.shape[1], 1, 1), head, jnp.float32)
            rows = [] if mine.rows is None else [mine.rows]
            number = jnp.broadcast_to(number, (*(rows[0].shape[:3] if rows else number.shape[:3]), 1))
            mine = mine.replace(score=ReadingHead(call.score), rows=jnp.concatenate([number, *rows], 3))
        return gathered(attend, mine)

    found = jax.lax.map(jax.checkpoint(one), (jnp.arange(heads, dtype=jnp.int32), own))
    return jax.tree.map(lambda x: jnp.moveaxis(x[:, :, :, 0], 0, 2), found)


@dataclasses.dataclass(frozen=True)
class ReadingHead:
    """``score``, with its head passed as the first of the rows."""

    score: Score

    def __call__(self, logits: Any, _: Any, q: Any, k: Any, head: Any, *rows: Any) -> Any:
        return self.score(logits, head.astype(jnp.int32), q, k, *rows)


def of_padded(score: Score | None, own: tuple[int, int], sizes: tuple[int, int]) -> Score | None:
    """``score`` for regions of queries and keys that were padded from ``own`` to ``sizes`` tokens: it receives the
    original positions.
    """
    if score is None or own == sizes:
        return score

    def scored(logits: Any, head: Any, q: Any, k: Any, *rows: Any) -> Any:
        q, k = (at if n == size else at // size * n + at % size for at, n, size in zip((q, k), own, sizes, strict=True))
        return score(logits, head, q, k, *rows)

    return scored


def objection(asked: Callable[[AttentionCall], str | None], call: AttentionCall) -> str | None:
    """Why an implementation does not support the call by copies of keys, or None; ``asked`` is its objection for calls
    without routes.
    """
    if call.score is not None and call.routes is not None and call.routes.shape[1] > 1:
        return "heads with their own routes are computed in a loop, in which a score's head is not static"
    answers: list[str | None] = []

    def attend(part: AttentionCall) -> tuple[Any, ...]:
        answers.append(asked(part))
        return jnp.zeros((*part.q.shape[:3], part.v.shape[3])), None

    arrays = {name: x for name, (x, _) in call.arrays.items()}
    jax.eval_shape(lambda arrays: gathered(attend, call.replace(**arrays)), arrays)
    return next((answer for answer in answers if answer is not None), None)


def padded_size(length: int, regions: int, block: int) -> int | None:
    """Tokens of a region padded to whole blocks; None where padding would add more than half of its tokens."""
    size = length // regions
    whole = -(-size // block) * block
    return whole if 2 * whole <= 3 * size else None


def cleaned(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, routes: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q, k and v with zeros for keys that a mask (batch or 1, 1, 1, k_length) hides, and for queries whose routes
    contain only such keys: 0 * NaN is NaN.
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
    """``x`` with each region padded to ``size`` tokens, with zeros (False) after its own."""
    own = x.shape[axis] // regions
    if own == size:
        return x
    x = x.reshape(*x.shape[:axis], regions, own, *x.shape[axis + 1 :])
    x = jnp.pad(x, [(0, size - own if a == axis + 1 else 0) for a in range(x.ndim)])
    return x.reshape(*x.shape[:axis], regions * size, *x.shape[axis + 2 :])


def unpadded(x: jax.Array, regions: int, own: int) -> jax.Array:
    """The inverse of :func:`padded`, for the length on axis 1; regions have ``own`` tokens."""
    size = x.shape[1] // regions
    return (
        x
        if size == own
        else x.reshape(x.shape[0], regions, size, *x.shape[2:])[:, :, :own].reshape(x.shape[0], -1, *x.shape[2:])
    )
