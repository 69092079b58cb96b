"""Inputs on which every implementation of attention is tested, timed and tuned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import masks
from pallas_kernels.dispatch import Case, Shape

Arrays = dict[str, np.ndarray]
Change = Callable[[Arrays, np.random.Generator], None]


def _case(
    name: str,
    q_length: int,
    k_length: int | None = None,
    *,
    batch: int = 2,
    heads: int = 2,
    kv_heads: int | None = None,
    head_dim: int = 8,
    value_dim: int | None = None,
    change: Change | None = None,
    **options: Any,
) -> Case:
    """Standard normal q, k and v, then ``change`` edits or adds arrays."""

    def arrays(rng: np.random.Generator) -> Arrays:
        keys = (batch, k_length or q_length, kv_heads or heads)
        made = {
            "q": rng.standard_normal((batch, q_length, heads, head_dim)),
            "k": rng.standard_normal((*keys, head_dim)),
            "v": rng.standard_normal((*keys, value_dim or head_dim)),
        }
        if change is not None:
            change(made, rng)
        return made

    return Case(name, arrays, options)


def _add(**shapes: tuple[int, ...]) -> Change:
    """Adds standard normal arrays by name."""

    def change(arrays: Arrays, rng: np.random.Generator) -> None:
        arrays.update({name: rng.standard_normal(shape) for name, shape in shapes.items()})

    return change


def _mask(*shape: int) -> Change:
    """A random mask; in the first batch element the first query attends to nothing."""

    def change(arrays: Arrays, rng: np.random.Generator) -> None:
        mask = rng.random(shape) < 0.7
        mask[0, :, 0] = False
        arrays["mask"] = mask

    return change


def _padded(real: int) -> Change:
    """Keys and values from index ``real`` on are NaN and masked; the last batch element is all padding, including its
    queries.
    """

    def change(arrays: Arrays, _: np.random.Generator) -> None:
        length = arrays["k"].shape[1]
        mask = np.arange(length) < np.full((arrays["k"].shape[0], 1), real)
        mask[-1] = False
        for name in ("k", "v"):
            arrays[name][~mask] = np.nan
        for name in {"q", "relative_query"} & arrays.keys():
            arrays[name][-1] = np.nan
        arrays["mask"] = mask[:, None, None, :]

    return change


def _padded_queries(real: int) -> Change:
    """Queries from index ``real`` on are NaN and attend to nothing, while other queries attend to every key."""

    def change(arrays: Arrays, _: np.random.Generator) -> None:
        length = arrays["q"].shape[1]
        arrays["q"][:, real:] = np.nan
        arrays["mask"] = (np.arange(length) < real)[None, None, :, None]

    return change


def _identical_keys(arrays: Arrays, _: np.random.Generator) -> None:
    arrays["k"][:] = arrays["k"][:, :1]


def _large_logits(arrays: Arrays, _: np.random.Generator) -> None:
    arrays["q"] *= 30
    arrays["k"] *= 30


def _steep(*shape: int, by: float) -> Change:
    """A bias of thousands that rises along the keys, by ``by`` on average, as float32 holds it, and its rest."""

    def change(arrays: Arrays, rng: np.random.Generator) -> None:
        exact = 4000 + np.cumsum(rng.uniform(0, 2 * by, shape), -1)
        arrays["bias"] = exact.astype(np.float32).astype(np.float64)
        arrays["bias_rest"] = (exact - arrays["bias"]).astype(np.float32).astype(np.float64)

    return change


def _cache(starts: tuple[int, ...], filled: tuple[int, ...]) -> Change:
    """Queries that start at a position of each row, and a cache in shuffled order with ``filled`` slots; the empty
    slots are NaN.
    """

    def change(arrays: Arrays, rng: np.random.Generator) -> None:
        rows, slots = arrays["k"].shape[:2]
        keys = np.full((rows, slots), -1, np.int32)
        for row, count in enumerate(filled):
            keys[row, rng.permutation(slots)[:count]] = np.arange(count)
        for name in ("k", "v"):
            arrays[name][keys < 0] = np.nan
        arrays["key_positions"] = keys
        arrays["query_positions"] = np.array(starts, np.int32)[:, None] + np.arange(
            arrays["q"].shape[1], dtype=np.int32
        )

    return change


def _key_regions(regions: int, key_regions: int, topk: int, heads: int) -> Change:
    """Random routes to ``key_regions`` regions of keys; some of them, and all of the first region, are -1."""

    def change(arrays: Arrays, rng: np.random.Generator) -> None:
        shape = (arrays["q"].shape[0], heads, regions, key_regions)
        routes = rng.permuted(np.broadcast_to(np.arange(key_regions), shape), axis=-1)[..., :topk]
        routes = np.where(rng.random(routes.shape) < 0.3, -1, routes).astype(np.int32)
        routes[:, :, 0] = -1
        arrays["routes"] = routes

    return change


def _routes(regions: int, topk: int, heads: int = 1, rows: int | None = None, hidden: int = 0) -> Change:
    """Random routes of ``rows`` batch elements (all by default); with ``hidden``, that many last keys of each region,
    and all keys of the last ``topk`` regions, are NaN and masked.
    """

    def change(arrays: Arrays, rng: np.random.Generator) -> None:
        batch, length = arrays["k"].shape[:2]
        order = rng.permuted(np.broadcast_to(np.arange(regions), (rows or batch, heads, regions, regions)), axis=-1)
        arrays["routes"] = order[..., :topk].astype(np.int32)
        if hidden:
            arrays["routes"][:, :, 0] = regions - topk + np.arange(topk)
            mask = np.tile(np.arange(length // regions) < length // regions - hidden, (batch, regions))
            mask[:, -(length // regions) * topk :] = False
            for name in ("k", "v"):
                arrays[name][~mask] = np.nan
            arrays["q"][:, : arrays["q"].shape[1] // regions] = np.nan
            arrays["mask"] = mask[:, None, None]

    return change


def _documents(*lengths: tuple[int, ...], alone: int = 0, keys: int | None = None) -> Change:
    """Rows of documents of these lengths; with ``alone``, that many last keys and the first query are NaN and belong to
    no document.

    With ``keys``, there are that many keys, which belong alternately to the last document and the one before it.
    """

    def change(arrays: Arrays, _: np.random.Generator) -> None:
        ids = np.stack([np.repeat(np.arange(len(row), dtype=np.int32), row) for row in lengths])
        arrays["query_segments"] = ids.copy()
        arrays["key_segments"] = ids if keys is None else ids[:, -1:] - np.arange(keys, dtype=np.int32) % 2
        if alone:
            arrays["key_segments"][:, -alone:] = -1
            arrays["query_segments"][:, 0] = -2
            for name in ("k", "v"):
                arrays[name][:, -alone:] = np.nan
            arrays["q"][:, 0] = np.nan

    return change


def _both(*changes: Change) -> Change:
    def change(arrays: Arrays, rng: np.random.Generator) -> None:
        for each in changes:
            each(arrays, rng)

    return change


def _capped(x: Any, head: Any, q: Any, k: Any) -> Any:
    """A soft cap, less a multiple of the distance that is larger in the first heads (ALiBi, arXiv:2108.12409)."""
    return 2.0 * jnp.tanh(x / 2.0) - jnp.exp2(-0.5 * (head + 1)) * abs(q - k)


def _tempered(x: Any, head: Any, q: Any, k: Any, temperature: Any) -> Any:
    return x * temperature - 0.1 * abs(q - k)


_UP = masks.FieldOfView(4, 90.0, prefix=2)

CASES = (
    _case("cross_grouped", 5, 19, heads=6, kv_heads=2, value_dim=3, scale=0.7, return_lse=True),
    _case("window_past_the_keys", 23, 9, window=(2, 2), return_lse=True),
    _case("mask", 9, heads=4, kv_heads=2, change=_mask(2, 4, 9, 9), return_lse=True),
    _case("bias", 9, heads=4, kv_heads=2, change=_add(bias=(2, 4, 9, 9)), return_lse=True),
    _case("bias_per_head", 9, batch=3, change=_add(bias=(2, 9, 9))),
    _case("large_bias_rest", 9, heads=4, kv_heads=2, causal=True, return_lse=True,
        change=_both(_add(sinks=(4,)), _steep(2, 4, 9, 9, by=500))),
    _case("long_large_bias_rest", 531, heads=2, kv_heads=1, change=_steep(2, 2, 1, 531, by=6), causal=True,
        return_lse=True),
    _case("padding_causal_grouped", 11, batch=3, heads=4, kv_heads=2, change=_padded(6), causal=True, return_lse=True),
    _case("query_padding", 11, 7, heads=4, kv_heads=2, change=_padded_queries(6), return_lse=True),
    _case("identical_keys", 17, change=_identical_keys, return_lse=True),
    _case("large_logits", 17, change=_large_logits, return_lse=True),
    _case("sinks_empty_rows", 9, change=_both(_mask(2, 1, 9, 9), _add(sinks=(2,))), return_lse=True),
    _case("sigmoid", 9, normalize="sigmoid"),
    _case("sigmoid_masked", 11, batch=3, change=_both(_padded(6), _add(bias=(1, 2, 1, 1))), normalize="sigmoid"),
    _case("cache_step", 1, 16, batch=3, heads=4, kv_heads=2, change=_cache((4, 0, 11), (5, 1, 12)), causal=True,
        return_lse=True),
    _case("cache_chunk", 3, 16, change=_cache((4, 9), (7, 12)), causal=True, window=(4, None)),
    _case("whole_blocks", 256, batch=1, heads=2, kv_heads=1, head_dim=16, change=_add(sinks=(2,)), causal=True),
    _case("long_causal", 1031, 1029, heads=2, kv_heads=1, batch=1, head_dim=4, causal=True, return_lse=True),
    _case("long_window", 773, heads=2, kv_heads=1, change=_add(sinks=(2,)), window=(40, 25), return_lse=True),
    _case("long_window_bias", 601, batch=1, change=_add(bias=(1, 2, 601, 601)), window=(100, 3)),
    _case("long_bias_for_all", 520, 130, kv_heads=1, change=_add(bias=(1, 1, 520, 130))),
    _case("long_window_past_the_keys", 901, 530, batch=1, window=(70, 70), return_lse=True),
    _case("long_padding", 600, heads=1, change=_padded(531), return_lse=True),
    _case("long_cache", 300, 530, change=_cache((4, 200), (304, 500)), causal=True, window=(64, None), return_lse=True),
    _case("routed", 20, 12, heads=4, kv_heads=2, change=_both(_routes(4, 2, hidden=1), _add(sinks=(4,))),
        return_lse=True),
    _case(
        "routed_heads", 18, score=_tempered, causal=True, return_lse=True,
        change=_both(_routes(6, 3, heads=2, rows=1),
            _add(rows=(2, 18, 2), bias=(2, 18, 18), relative_bias=(2, 7), sinks=(2,))),
    ),
    _case(
        "routed_key_regions", 12, 20, heads=4, kv_heads=2, key_regions=5, return_lse=True,
        change=_both(_key_regions(4, 5, 3, 1), _add(bias=(4, 12, 20))),
    ),
    _case(
        "routed_key_regions_heads", 12, 20, heads=4, kv_heads=2, key_regions=10, causal=True, return_lse=True,
        score=_capped,
        change=_both(_key_regions(12, 10, 4, 4), _add(sinks=(4,), relative_keys=(4, 9, 8))),
    ),
    _case("long_routed_score", 300, 384, batch=1, heads=2, kv_heads=1, change=_routes(3, 1, hidden=7), score=_capped,
        return_lse=True),
    _case("pattern", 23, 19, heads=4, kv_heads=2, mask=masks.dilated(8, 2), return_lse=True),
    _case(
        "pattern_by_head", 20, 17, heads=4, kv_heads=2, score=_capped, return_lse=True,
        mask=masks.ByHead((_UP, masks.window(4, 3), _UP, masks.FieldOfView(4, 202.5, 45.0, 2))),
        change=_add(bias=(4, 20, 17), sinks=(4,)),
    ),
    _case("pattern_cache_score", 3, 16, change=_cache((4, 9), (7, 12)), causal=True, mask=masks.segments(4),
        score=_capped, return_lse=True),
    _case("long_pattern", 600, 531, batch=1, heads=1, window=(300, 20), mask=masks.global_and_random(600, 32, random=1),
        return_lse=True),
    _case(
        "long_listed", 600, 590, batch=2, heads=2, kv_heads=1, return_lse=True, score=_tempered,
        mask=masks.global_and_random(600, 32, window=1, random=1, seed=35),  # two groups of chunks, of unequal lists
        change=_both(
            _documents((600,), (300, 300), keys=590),
            _add(rows=(2, 600, 1), sinks=(2,), bias=(1, 1, 600, 590), relative_bias=(2, 99))
        ),
    ),
    _case(
        "segments", 12, heads=4, kv_heads=2, causal=True, return_lse=True,
        change=_both(_documents((5, 4, 3), (1, 9, 2)), _add(sinks=(4,))),
    ),
    _case(
        "segments_alone", 12, return_lse=True,
        change=_both(_documents((5, 4, 3), (1, 9, 2), alone=2), _add(bias=(2, 12, 12))),
    ),
    _case(
        "segments_routed", 20, mask=masks.window(9, 4), return_lse=True,
        change=_both(_routes(4, 2), _documents((7, 13))),
    ),
    _case(
        "long_segments", 700, causal=True, return_lse=True,
        change=_documents((300, 1, 399), (100, 590, 10), alone=9),
    ),
    _case(
        "long_segments_mask", 531, heads=1, return_lse=True,
        change=_both(_padded(500), _documents((200, 331))),
    ),
    _case("score", 9, heads=4, kv_heads=2, change=_add(bias=(4, 9, 9)), score=_capped, causal=True, return_lse=True),
    _case(
        "rows", 9, heads=4, kv_heads=2, score=_tempered, return_lse=True, causal=True, change=_add(rows=(2, 9, 4)),
    ),
    _case("rows_shared", 11, batch=3, score=_tempered, normalize="none",
        change=_both(_padded(6), _add(rows=(1, 11, 1)))),
    _case(
        "long_rows", 200, batch=1, score=_tempered, normalize="sigmoid", causal=True,
        change=_add(rows=(1, 200, 2), bias=(2, 200, 200)),
    ),
    _case(
        "relative", 13, heads=4, kv_heads=2, causal=True, return_lse=True,
        change=_add(relative_bias=(4, 9), relative_weight=(1, 31), relative_keys=(4, 5, 8)),
    ),
    _case(
        "relative_query", 7, 12, relative_origin=-3, normalize="sigmoid",
        change=_both(_add(relative_keys=(1, 40, 8), relative_query=(2, 7, 2, 8), relative_weight=(2, 3)), _padded(9)),
    ),
    _case(
        "relative_cache", 3, 16, change=_both(_cache((4, 9), (7, 12)),
            _add(relative_bias=(2, 9), relative_weight=(2, 9), relative_keys=(1, 9, 8))),
        causal=True, return_lse=True,
    ),
    _case("relative_routed", 20, 12, heads=4, kv_heads=2,
        change=_both(_routes(4, 2, hidden=1), _add(relative_bias=(4, 15), relative_keys=(4, 9, 8)))),
    _case(
        "long_relative", 531, 600, batch=1, heads=2, kv_heads=1, return_lse=True, window=(100, 30),
        change=_add(relative_bias=(2, 61), relative_weight=(2, 1200), relative_keys=(2, 9, 8)),
    ),
    _case("long_relative_causal", 200, batch=1, heads=2, kv_heads=1, causal=True,
        change=_add(relative_bias=(1, 2000), relative_keys=(1, 700, 8))),
)  # fmt: skip


def _shape(
    name: str,
    q: tuple[int, ...],
    k: tuple[int, ...] | None = None,
    change: dict[str, jax.ShapeDtypeStruct] | None = None,
    **options: Any,
) -> Shape:
    """q and k as (batch, length, heads, head_dim), v as k."""
    return Shape(name, {"q": q, "k": k or q, "v": k or q, **(change or {})}, options)


SHAPES = (
    _shape("dense", (2, 2048, 8, 128)),
    _shape("causal_grouped", (2, 2048, 8, 128), (2, 2048, 2, 128), causal=True),
    _shape("causal_lse", (1, 4000, 8, 64), causal=True, return_lse=True),
    _shape("window", (1, 8192, 8, 128), causal=True, window=(511, None)),
    _shape("padding", (2, 2048, 8, 64), change={"mask": jax.ShapeDtypeStruct((2, 1, 1, 2048), jnp.bool_)}),
    _shape("mask", (1, 1024, 8, 64), change={"mask": jax.ShapeDtypeStruct((1, 8, 1024, 1024), jnp.bool_)},
        return_lse=True),
    _shape(
        "cache", (2, 512, 8, 128), (2, 2048, 2, 128), causal=True,
        change={"query_positions": jax.ShapeDtypeStruct((2, 512), jnp.int32),
            "key_positions": jax.ShapeDtypeStruct((2, 2048), jnp.int32)},
    ),
    _shape(
        "segments", (2, 4096, 8, 128), causal=True,
        change={name: jax.ShapeDtypeStruct((2, 4096), jnp.int32) for name in ("query_segments", "key_segments")},
    ),
    _shape("sigmoid", (2, 1024, 8, 64), normalize="sigmoid"),
    _shape("image_windows", (256, 49, 4, 32)),
    _shape("image_windows_bias", (256, 49, 4, 32), change={"bias": jax.ShapeDtypeStruct((1, 4, 49, 49), jnp.float32)}),
    _shape("score", (2, 2048, 8, 64), causal=True, score=_capped),
    _shape("pattern", (1, 4096, 8, 128), mask=masks.dilated(1024, 2)),
    _shape("routed", (8, 3136, 4, 32), change={"routes": jax.ShapeDtypeStruct((8, 1, 49, 4), jnp.int32)}),
    _shape("routed_padded", (2, 9604, 4, 32), change={"routes": jax.ShapeDtypeStruct((2, 1, 49, 4), jnp.int32)}),
)  # fmt: skip
