"""Attention with softmax, sigmoid or plain weights: grouped heads, masks, windows, routed regions, score functions,
relative position tables, sinks, cache positions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import distributed, masks, reference, xla
from pallas_kernels.attention.call import AttentionCall
from pallas_kernels.attention.cases import CASES, SHAPES
from pallas_kernels.attention.masks import ByHead, Mask, Score
from pallas_kernels.attention.merging import merge as merge
from pallas_kernels.dispatch import Implementation, Later, Op
from primitives import sequence

tpu, gpu, splash = (Later(f"{__name__}.{module}") for module in ("tpu.mosaic", "gpu.mosaic", "tpu.splash"))
_op = Op(
    "attention",
    (
        Implementation(
            "all_to_all",
            distributed.all_to_all,
            objection=distributed.all_to_all_objection,
            considered=sequence.is_split,
        ),
        Implementation(
            "ring", distributed.ring, objection=distributed.ring_objection, considered=sequence.is_split, paper=(23,)
        ),
        Implementation("splash", splash.attention, platforms=("tpu",), objection=splash.objection),
        Implementation("mosaic_tpu", tpu.attention, platforms=("tpu",), objection=tpu.objection, paper=(92, 140, 216)),
        Implementation("mosaic_gpu", gpu.attention, platforms=("gpu",), objection=gpu.objection, paper=(92, 140, 216)),
        Implementation("xla", xla.attention, paper=(1,)),
        Implementation("reference", reference.attention, paper=(1,)),
    ),
    CASES,
    SHAPES,
)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    bias: jax.Array | None = None,
    bias_rest: jax.Array | None = None,
    mask: jax.Array | Mask | ByHead | None = None,
    score: Score | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    normalize: str = "softmax",
    sinks: jax.Array | None = None,
    query_positions: jax.Array | None = None,
    key_positions: jax.Array | None = None,
    query_segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
    routes: jax.Array | None = None,
    key_regions: int | None = None,
    rows: jax.Array | tuple[jax.Array, ...] | None = None,
    relative_bias: jax.Array | None = None,
    relative_weight: jax.Array | None = None,
    relative_keys: jax.Array | None = None,
    relative_query: jax.Array | None = None,
    relative_origin: int | None = None,
    finite: bool = False,
    return_lse: bool = False,
    implementation: str | None = None,
) -> Any:
    """Multi-head attention (arXiv:1706.03762, equation 1).

    Statistics and sums are float32 (float64 for float64 inputs) for every dtype. A query that may not attend to any key
    gets zeros and, without a sink, a log-sum-exp of -inf; its gradients are zero. A key and value that no query may
    attend to can hold anything, including NaN.

    Args:
      q: (batch, q_length, heads, head_dim).
      k: (batch, k_length, kv_heads, head_dim); kv_heads divides heads, and query head h reads key-value head h //
        (heads // kv_heads).
      v: (batch, k_length, kv_heads, value_dim).
      bias: added to the scaled logits; broadcastable to (batch, heads, q_length, k_length). Differentiable.
      bias_rest: of bias's shape, what its dtype could not hold of a large bias; the sum of both is added. A softmax
        depends on differences of logits only, so the largest bias of a query's keys is subtracted before the sum is
        rounded. Implementations in 16 bits add the rounded sum. Differentiable.
      mask: bool, True = attend; broadcastable to the same shape. Dimensions of size 1 are not expanded. Or a Python
        function of positions, (query, key) -> bool: see :mod:`pallas_kernels.attention.masks`, also available as
        ``pallas_kernels.masks``. With default positions the cost is proportional to the blocks that it allows; padding
        is then marked by ``key_positions``. ``masks.ByHead`` has one function for each head.
      score: a Python function (logits, head, query_position, key_position, *rows) -> logits, applied to the scaled
        logits before the bias and the mask: elementwise JAX arithmetic on broadcasting arrays and Python numbers.
        ``lambda x, *_: 50 * jnp.tanh(x / 50)`` is a soft cap; ``lambda x, head, q, k: x - jnp.exp2(-1.0 - head) * (q -
        k)`` is ALiBi for 8 heads. ``head`` is the query's head. It must be differentiable in the logits at all
        positions, also at masked keys. Create it once and reuse it: programs are compiled again for each new function
        object.
      causal: a query attends only to keys at positions up to its own.
      window: (left, right): only keys at positions from query - left to query + right; None is unbounded. With default
        positions the cost is linear in length when both sides are bounded.
      scale: factor of the logits, a Python number; 1 / sqrt(head_dim) by default. Multiply q by a learned scale.
      normalize: "softmax"; "sigmoid": sigmoid(logits) @ v (arXiv:2409.04431); or "none": logits @ v, for example those
        of a ``score``.
      sinks: (heads,) extra logits in the softmax denominator. Differentiable.
      query_positions: int32 (batch, q_length), arange by default.
      key_positions: int32 (batch, k_length), arange by default; a negative one marks an empty slot, which is never
        attended to.
      query_segments, key_segments: int32 (batch or 1, q_length) and (batch or 1, k_length), both or neither: a query
        attends only to keys with its own id, as for documents that share a row. Any integers, in any order.
      routes: int (batch or 1, heads or 1, regions, topk): tokens are stored region by region, equally many in each, and
        those of a region attend only to those of the topk different regions in its row (BiFormer, arXiv:2303.08810).
        All other arguments still apply: a mask may hide padding, and positions are those of the tokens as stored. Keys
        are copied for each region.
      key_regions: number of regions of the keys, if it differs from that of the queries. ``routes`` may then contain -1
        for no region.
      rows: (batch or 1, q_length, heads or 1), one array or a tuple: values for each query, which ``score`` receives
        after the positions. Differentiable.
      relative_bias: (heads or 1, span), added to the logits like ``bias``: the entry at clip(key_position -
        query_position - origin, 0, span - 1) (T5, arXiv:1910.10683). Differentiable, like all tables; memory is linear
        in the span.
      relative_weight: (heads or 1, span): factors of the normalized weights, indexed in the same way (URPE,
        arXiv:2205.13401). They do not affect the log-sum-exp.
      relative_keys: (heads or 1, span, head_dim): their products with the queries are added to those of the keys,
        before the scale (arXiv:1803.02155).
      relative_query: an array of q's shape, multiplied with ``relative_keys`` in place of q (Transformer-XL,
        arXiv:1901.02860).
      relative_origin: the offset of the tables' first entry; -(span // 2) of each by default.
      finite: a promise that q, k and v are finite everywhere, also where nothing attends. What is not seen is then not
        replaced by zeros, which with a cache and few queries saves a copy of all keys and values.
      return_lse: also return the log-sum-exp of the logits, including the sink. Differentiable.
      implementation: the name of one, or None for the best that serves the call.

    Returns:
      (batch, q_length, heads, value_dim) in q's dtype; with ``return_lse`` also float32 (batch, q_length, heads).

    Raises:
      ValueError: shapes, dtypes or options that do not fit together.
    """
    parts = _checked(
        q, k, v, bias=bias, bias_rest=bias_rest, mask=mask, score=score, causal=causal, window=window, scale=scale,
        normalize=normalize, sinks=sinks,
        query_positions=query_positions, key_positions=key_positions, query_segments=query_segments,
        key_segments=key_segments, routes=routes, key_regions=key_regions, rows=rows, relative_bias=relative_bias,
        relative_weight=relative_weight, relative_keys=relative_keys, relative_query=relative_query,
        relative_origin=relative_origin, finite=finite, return_lse=return_lse,
    )  # fmt: skip
    results = [_op(call, implementation) for _, call in parts]
    out = _joined([out for out, _ in results], parts, 2)
    return (out, _joined([lse for _, lse in results], parts, 2)) if return_lse else out


def attention_weights(q: jax.Array, k: jax.Array, **options: Any) -> jax.Array:
    """The weights of :func:`attention`, for attention maps: float32 (batch, heads, q_length, k_length).

    Computed by the plain equation with quadratic memory: for inspection, not for running a model. ``options`` are those
    of :func:`attention` that affect the weights; errors as there.
    """
    parts = _checked(q, k, None, **options)
    return _joined([reference.attention_weights(call) for _, call in parts], parts, 1)


Parts = list[tuple[tuple[int, ...], AttentionCall]]
"""Calls with one mask function each, and the query heads of each."""


def _joined(results: list[jax.Array], parts: Parts, axis: int) -> jax.Array:
    """Concatenates the results of :data:`Parts` along ``axis``, with the heads in their original order."""
    if len(results) == 1:
        return results[0]
    order = np.argsort(np.concatenate([heads for heads, _ in parts]))
    return jnp.take(jnp.concatenate(results, axis), order, axis, mode="clip")


def _checked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array | None,
    *,
    bias: jax.Array | None = None,
    bias_rest: jax.Array | None = None,
    mask: jax.Array | Mask | ByHead | None = None,
    score: Score | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    normalize: str = "softmax",
    sinks: jax.Array | None = None,
    query_positions: jax.Array | None = None,
    key_positions: jax.Array | None = None,
    query_segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
    routes: jax.Array | None = None,
    key_regions: int | None = None,
    rows: jax.Array | tuple[jax.Array, ...] | None = None,
    relative_bias: jax.Array | None = None,
    relative_weight: jax.Array | None = None,
    relative_keys: jax.Array | None = None,
    relative_query: jax.Array | None = None,
    relative_origin: int | None = None,
    finite: bool = False,
    return_lse: bool = False,
) -> Parts:
    """Validates the arguments, expands bias and mask to four dimensions, sets the default scale, and splits the call by
    heads with different mask functions.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x is not None and (x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating)):
            raise ValueError(
                f"attention: {name} must be floating (batch, length, heads, head_dim), got {x.dtype}{list(x.shape)}"
            )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"attention: q {q.shape} and k {k.shape} must agree in batch and head_dim (axes 0 and 3)")
    if v is not None and v.shape[:3] != k.shape[:3]:
        raise ValueError(f"attention: v {v.shape} and k {k.shape} must agree in batch, length and heads (axes 0 to 2)")
    if 0 in (q.shape[1], k.shape[1], k.shape[2]) or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"attention: lengths must be positive and the {k.shape[2]} heads of k divide the {q.shape[2]} of q: q "
            f"{q.shape}, k {k.shape}"
        )
    if normalize not in ("softmax", "sigmoid", "none"):
        raise ValueError(f'attention: normalize is "softmax", "sigmoid" or "none", got {normalize!r}')
    if normalize != "softmax" and (sinks is not None or return_lse):
        raise ValueError(
            f"attention: {normalize} weights have no denominator, so neither sinks nor return_lse; drop them or use "
            f"softmax"
        )
    if sinks is not None and sinks.shape != (q.shape[2],):
        raise ValueError(f"attention: sinks must be (heads,) = ({q.shape[2]},), got {sinks.shape}")
    if bias_rest is not None and (bias is None or bias_rest.shape != bias.shape or normalize != "softmax"):
        raise ValueError(
            f"attention: bias_rest is what is left of a softmax's bias, of its shape; got {bias_rest.shape} for "
            f"{None if bias is None else bias.shape} and {normalize}"
        )
    full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    heads_of: dict[Mask, tuple[int, ...]] = {}
    if isinstance(mask, ByHead):
        if len(mask.parts) != full[1]:
            raise ValueError(f"attention: masks of {len(mask.parts)} heads are given, for {full[1]} heads of queries")
        for head, part in enumerate(mask.parts):
            heads_of[part] = (*heads_of.get(part, ()), head)
        mask = None
    elif callable(mask):
        heads_of, mask = {mask: tuple(range(full[1]))}, None
    for part in heads_of:
        _check_function("mask", part, jnp.bool_, _PLACES)
    numbers = _stacked(rows, full)
    if numbers is not None and score is None:
        raise ValueError("attention: rows are numbers for score=, which is not given")
    if score is not None:
        more = (jax.ShapeDtypeStruct((2, 1), jnp.float32),) * (0 if numbers is None else numbers.shape[3])
        logits, heads = jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((1, 1), jnp.int32)
        _check_function("score", score, jnp.floating, (logits, heads, *_PLACES, *more))
    if mask is not None and mask.dtype != jnp.bool_:
        raise ValueError(
            f"attention: mask must be bool (True = attend), got {mask.dtype}; add numbers to the logits with bias"
        )
    if scale is not None and not isinstance(scale, (int, float)):
        raise ValueError(
            f"attention: scale must be a Python number, got {type(scale).__name__}; multiply q by a learned scale"
        )
    if window is not None and (len(window) != 2 or any(side is not None and side < 0 for side in window)):
        raise ValueError(f"attention: window must be (left, right), each None or an int of at least 0, got {window}")
    if (query_segments is None) != (key_segments is None):
        raise ValueError(
            "attention: query_segments and key_segments are given together, the same array twice in self-attention"
        )
    for name, x, length in (
        ("query_positions", query_positions, full[2]), ("key_positions", key_positions, full[3]),
        ("query_segments", query_segments, full[2]), ("key_segments", key_segments, full[3]),
    ):  # fmt: skip
        if x is not None and (
            x.shape not in ((full[0], length), (1, length)) or not jnp.issubdtype(x.dtype, jnp.integer)
        ):
            raise ValueError(
                f"attention: {name} must be integer (batch, length) = {(full[0], length)}, got {x.dtype}{list(x.shape)}"
            )
    if routes is not None:
        _check_routes(routes, full, key_regions)
    elif key_regions is not None:
        raise ValueError("attention: key_regions is for routes=, which is not given")
    for name, table, shape in (
        ("relative_bias", relative_bias, ()), ("relative_weight", relative_weight, ()),
        ("relative_keys", relative_keys, q.shape[3:]),
    ):  # fmt: skip
        if table is not None and (
            table.ndim < 2 or table.shape[0] not in (1, full[1]) or table.shape[2:] != shape or not table.shape[1]
        ):
            raise ValueError(
                f"attention: {name} must be (heads or 1, span{', head_dim' if shape else ''}) for {full[1]} heads, got "
                f"{table.shape}"
            )
    if relative_query is not None and (relative_keys is None or relative_query.shape != q.shape):
        raise ValueError(
            f"attention: relative_query is of q's shape {q.shape}, for relative_keys; got {relative_query.shape}"
        )
    call = AttentionCall(
        q=q,
        k=k,
        v=k if v is None else v,
        bias=_four_dimensions("bias", bias, full),
        bias_rest=_four_dimensions("bias_rest", bias_rest, full),
        mask=_four_dimensions("mask", mask, full),
        sinks=sinks,
        query_positions=query_positions,
        key_positions=key_positions,
        query_segments=query_segments,
        key_segments=key_segments,
        routes=routes,
        key_regions=key_regions,
        rows=numbers,
        relative_bias=relative_bias,
        relative_weight=relative_weight,
        relative_keys=relative_keys,
        relative_query=relative_query,
        relative_origin=relative_origin,
        score=score,
        reach=masks.narrower(window or (None, None), (None, 0 if causal else None)),
        scale=q.shape[3] ** -0.5 if scale is None else scale,
        normalize=normalize,
        return_lse=return_lse,
        finite=finite,
    )
    if len(heads_of) > 1:
        return [(heads, call.of_heads(heads).within(part)) for part, heads in heads_of.items()]
    everyone = tuple(range(full[1]))
    return [(everyone, call.within(part)) for part in heads_of] or [(everyone, call)]


_PLACES = (jax.ShapeDtypeStruct((2, 1), jnp.int32), jax.ShapeDtypeStruct((1, 3), jnp.int32))


def _check_function(name: str, function: Any, dtype: Any, arguments: tuple[jax.ShapeDtypeStruct, ...]) -> None:
    """Refuses functions that are not elementwise in their arguments, because kernels can't inline them."""
    traced = jax.make_jaxpr(function)(*arguments)
    (result,) = traced.out_avals if len(traced.out_avals) == 1 else (None,)
    if result is None or not jnp.issubdtype(result.dtype, dtype) or np.broadcast_shapes(result.shape, (2, 3)) != (2, 3):
        raise ValueError(
            f"attention: the function {name} must be elementwise and return {dtype.__name__.rstrip('_')}, got "
            f"{traced.out_avals}"
        )
    if any(getattr(x, "ndim", 0) for x in traced.consts):
        raise ValueError(
            f"attention: the function {name} uses an array from outside; kernels take only its arguments and Python "
            f"numbers"
        )


def _stacked(rows: jax.Array | tuple[jax.Array, ...] | None, full: tuple[int, ...]) -> jax.Array | None:
    """Stacks all rows into one array, (batch or 1, q_length, heads or 1, count)."""
    given = () if rows is None else rows if isinstance(rows, tuple) else (rows,)
    batch, heads, q_length, _ = full
    for row in given:
        fits = row.ndim == 3 and row.shape[0] in (1, batch) and row.shape[1] == q_length and row.shape[2] in (1, heads)
        if not fits or not jnp.issubdtype(row.dtype, jnp.floating):
            wanted = f"(batch or 1, q_length, heads or 1) = ({batch}, {q_length}, {heads})"
            raise ValueError(f"attention: rows must be floating {wanted}, got {row.dtype}{list(row.shape)}")
    return jnp.stack(jnp.broadcast_arrays(*given), -1) if given else None


def _check_routes(routes: jax.Array, full: tuple[int, ...], key_regions: int | None) -> None:
    batch, heads, q_length, k_length = full
    shape = routes.shape
    if (
        len(shape) != 4
        or shape[0] not in (1, batch)
        or shape[1] not in (1, heads)
        or not jnp.issubdtype(routes.dtype, jnp.integer)
    ):
        raise ValueError(
            f"attention: routes must be integer (batch, heads, regions, topk) = ({batch}, {heads}, ...), got "
            f"{routes.dtype}{list(shape)}"
        )
    regions = shape[2] if key_regions is None else key_regions
    if regions < 1 or q_length % shape[2] or k_length % regions or not 1 <= shape[3] <= regions:
        raise ValueError(
            f"attention: {shape[2]} regions must divide {q_length} queries, and {regions} regions {k_length} keys; of "
            f"them 1 to all are attended to, not {shape[3]}"
        )


def _four_dimensions(name: str, x: jax.Array | None, full: tuple[int, ...]) -> jax.Array | None:
    if x is None:
        return None
    shape = (1,) * (4 - x.ndim) + x.shape
    if len(shape) != 4 or any(n not in (1, m) for n, m in zip(shape, full, strict=True)):
        raise ValueError(
            f"attention: {name} {x.shape} does not broadcast to (batch, heads, q_length, k_length) = {full}"
        )
    return x.reshape(shape)
