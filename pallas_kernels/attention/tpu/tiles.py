"""The computation of a tile of flash attention on TPU: logits, masks, weights, and their gradients.

Tiles of the kernel for keys and values are transposed: their rows are keys.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention.masks import Mask, Score
from pallas_kernels.attention.scores import with_slope
from pallas_kernels.mosaic_tpu import column


@dataclasses.dataclass(frozen=True)
class Options:
    """The static settings of the kernels; hashable.

    Attributes:
      left, right: keys from query - left to query + right; None is unbounded.
      pattern: function of query and key position, True = attend; None allows all.
      score: function of the scaled logits, query head and both positions; None for no change.
      k_length: keys of a row before padding.
      block_q, block_k: sizes of blocks, which divide the padded lengths.
      folded: numbers of queries and keys (powers of two) of the rows that share a block, each attending only to itself;
        None where rows do not share blocks.
      visits: number of block pairs in all lists of a row of the batch, or an upper bound.
      steps: lengths of the longest list of key blocks and of query blocks.
      interpret: what ``pallas_call`` gets under this name: :func:`pallas_kernels.dispatch.interpreted`.
    """

    left: int | None
    right: int | None
    scale: float
    normalize: str
    k_length: int
    block_q: int
    block_k: int
    folded: tuple[int, int] | None
    visits: int
    steps: tuple[int, int]
    interpret: Any
    pattern: Mask | None = None
    score: Score | None = None


class Where(NamedTuple):
    """What the logits and masks depend on besides queries, keys and the window; None for arrays that are not needed.

    Attributes:
      queries: int32 (batch or 1, 1, q_length), positions.
      keys: int32 (batch or 1, heads or 1, k_length), positions, negative for keys that are not attended to.
      query_segments, key_segments: int32 (batch or 1, 1, length): ids, which must be equal; both or neither.
      mask: int8 (batch or 1, heads or 1, q_length, k_length), 0 where masked.
      bias: floating point, of the same shape; added to the logits.
    """

    queries: jax.Array | None
    keys: jax.Array | None
    query_segments: jax.Array | None
    key_segments: jax.Array | None
    mask: jax.Array | None
    bias: jax.Array | None


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """The product of two matrices, contracting one axis of each, in float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        a, b, (((contract[0],), (contract[1],)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def places(options: Options, i: Any, j: Any, transposed: bool) -> tuple[jax.Array, jax.Array]:
    """The positions of the queries of block i, int32 (block_q, 1), and of the keys of block j, (1, block_k); or their
    transposes. A pattern computes what depends on one of them once for each row or column.
    """
    q_shape, k_shape = (options.block_q, 1), (1, options.block_k)
    if transposed:
        q_shape, k_shape = q_shape[::-1], k_shape[::-1]
    return (
        i * options.block_q + lax.broadcasted_iota(jnp.int32, q_shape, int(transposed)),
        j * options.block_k + lax.broadcasted_iota(jnp.int32, k_shape, int(not transposed)),
    )


def positions(options: Options, i: Any, j: Any, where: Where, transposed: bool) -> tuple[jax.Array, jax.Array]:
    """Positions of queries and keys that broadcast to the block; a key's is negative if it is not attended to.
    ``where`` holds references.
    """
    q_place, k_place = places(options, i, j, transposed)
    if options.folded is not None:
        q_place, k_place = q_place & options.folded[0] - 1, k_place & options.folded[1] - 1
    given_q, given_k = _crossed(where.queries, where.keys, transposed)
    return q_place if given_q is None else given_q, k_place if given_k is None else given_k


def _crossed(queries: Any, keys: Any, transposed: bool) -> tuple[Any, Any]:
    """Loads numbers of queries and of keys (references to rows, or None) so that they broadcast to the block."""
    rows = [
        None if x is None else column(x[...]) if upright else x[...]
        for x, upright in ((queries, not transposed), (keys, transposed))
    ]
    return rows[0], rows[1]


def allowed(options: Options, i: Any, j: Any, where: Where, transposed: bool) -> jax.Array | None:
    """bool (block_q, block_k), or its transpose, of query block i and key block j. ``where`` holds references."""
    q_at, k_at = positions(options, i, j, where, transposed)
    q_place, k_place = places(options, i, j, transposed)
    terms = [k_at < options.k_length if where.keys is None else k_at >= 0]
    if where.query_segments is not None:
        q_id, k_id = _crossed(where.query_segments, where.key_segments, transposed)
        terms.append(q_id == k_id)
    if options.folded is not None:
        q_size, k_size = options.folded
        terms.append((q_place >> q_size.bit_length() - 1) == (k_place >> k_size.bit_length() - 1))
    if options.left is not None:
        terms.append(k_at - q_at >= -options.left)
    if options.right is not None:
        terms.append(k_at - q_at <= options.right)
    if options.pattern is not None:
        terms.append(options.pattern(q_at, k_at))
    if where.mask is not None:
        terms.append(where.mask[...].astype(jnp.int32) != 0)
    shape = jnp.broadcast_shapes(q_place.shape, k_place.shape)
    return functools.reduce(jnp.logical_and, (jnp.broadcast_to(t, shape) for t in terms))


def logits(
    options: Options,
    rows: jax.Array,
    columns: jax.Array,
    bias: Any,
    head: Any,
    places: Callable[[], tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array | None]:
    """Logits, and their derivative in the scaled products; None is 1.

    Args:
      rows, columns: queries and keys, or keys and queries.
      head: index of the query head.
      places: returns :func:`positions`.
    """
    found, slope = dot(rows, columns, (1, 1)), None
    if options.scale != 1.0:
        found = options.scale * found
    if options.score is not None:
        heads = jnp.full((1, 1), head, jnp.int32)  # Mosaic has no exponentials of scalars
        found, slope = with_slope(options.score, found, heads, *places())
    return (found if bias is None else found + bias[...].astype(jnp.float32)), slope


def weights(options: Options, logits: jax.Array, shift: jax.Array, allowed: jax.Array | None) -> jax.Array:
    """The weights; for softmax without the denominator."""
    if options.normalize == "sigmoid":
        weights = jax.nn.sigmoid(logits)
    else:
        weights = jnp.exp(logits - shift)
    return weights if allowed is None else jnp.where(allowed, weights, 0.0)


def gradient_of_logits(options: Options, weights: jax.Array, d_weights: jax.Array, delta: jax.Array) -> jax.Array:
    """The gradient of the logits, from that of the weights; ``delta``, a column, is the term that softmax subtracts in
    each row.
    """
    if options.normalize == "sigmoid":
        return weights * (1 - weights) * d_weights
    return weights * (d_weights - delta)


def times(gradient: jax.Array, slope: jax.Array | None) -> jax.Array:
    """The gradient of the scaled products from that of the logits."""
    return gradient if slope is None else gradient * slope
