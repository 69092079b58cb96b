"""Loops in numpy as the truth for the reference of test_ops.py, the memory of the XLA form, and refusals."""

from __future__ import annotations

import functools
import importlib
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from pallas_kernels import attention, attention_weights, dispatch, masks, merge
from pallas_kernels.attention import lists
from pallas_kernels.attention.blocks import cover
from pallas_kernels.attention.cases import CASES
from primitives import operations
from tests.tiers import tiered


def by_loops(arrays: dict[str, np.ndarray], options: dict) -> tuple[np.ndarray, np.ndarray]:
    """Attention one query at a time, over a list of the keys that it may attend."""
    q, k, v = arrays["q"], arrays["k"], arrays["v"]
    (batch, q_length, heads, _), (_, k_length, kv_heads, _) = q.shape, k.shape
    full = (batch, heads, q_length, k_length)
    bias = np.broadcast_to(arrays.get("bias", np.zeros(())) + arrays.get("bias_rest", 0), full)
    mask = np.broadcast_to(arrays.get("mask", np.ones((), bool)), full)
    pattern = options.get("mask", lambda q, k: True)
    patterns = pattern.parts if isinstance(pattern, masks.ByHead) else (pattern,) * heads
    q_positions = np.broadcast_to(arrays.get("query_positions", np.arange(q_length)), (batch, q_length))
    k_positions = np.broadcast_to(arrays.get("key_positions", np.arange(k_length)), (batch, k_length))
    score = options.get("score", lambda x, *_: x)
    q_segments, k_segments = (
        np.broadcast_to(arrays.get(f"{of}_segments", 0), (batch, n))
        for of, n in (("query", q_length), ("key", k_length))
    )
    left, right = options.get("window") or (None, None)
    routes = arrays.get("routes", np.zeros((1, 1, 1, 1), int))
    regions = routes.shape[2]
    key_regions = options.get("key_regions", regions)
    routes = np.broadcast_to(routes, (batch, heads, *routes.shape[2:]))
    rows = np.broadcast_to(arrays.get("rows", np.zeros((1, 1, 1))), q.shape[:3]) if "rows" in arrays else None
    out, lse = np.zeros((*q.shape[:3], v.shape[3])), np.full(q.shape[:3], -np.inf)

    def entry(name: str, h: int, offset: int) -> Any:
        if name not in arrays:
            return None
        table = np.broadcast_to(arrays[name], (heads, *arrays[name].shape[1:]))[h]
        return table[np.clip(offset - options.get("relative_origin", -(len(table) // 2)), 0, len(table) - 1)]

    for b, h, i in np.ndindex(batch, heads, q_length):
        at, head = q_positions[b, i], h * kv_heads // heads
        attended = [
            j
            for j, p in enumerate(k_positions[b])
            if p >= 0
            and mask[b, h, i, j]
            and patterns[h](at, p)
            and q_segments[b, i] == k_segments[b, j]
            and j * key_regions // k_length in routes[b, h, i * regions // q_length]
            and not (options.get("causal") and p > at)
            and (left is None or p >= at - left)
            and (right is None or p <= at + right)
        ]
        scale = options.get("scale") or 1 / math.sqrt(q.shape[3])
        offsets = [int(k_positions[b, j] - at) for j in attended]
        other = arrays.get("relative_query", q)[b, i, h]
        logits = np.array([q[b, i, h] @ k[b, j, head] for j in attended])
        if "relative_keys" in arrays:
            logits = logits + np.array([other @ entry("relative_keys", h, d) for d in offsets])
        own = () if rows is None else (rows[b, i, h],)
        logits = np.asarray(score(logits * scale, h, at, k_positions[b, attended], *own)) + bias[b, h, i, attended]
        if "relative_bias" in arrays:
            logits = logits + np.array([entry("relative_bias", h, d) for d in offsets])
        factors = [entry("relative_weight", h, d) if "relative_weight" in arrays else 1.0 for d in offsets]
        values = [v[b, j, head] * factor for j, factor in zip(attended, factors)]
        if (normalize := options.get("normalize", "softmax")) != "softmax":
            weights = 1 / (1 + np.exp(-logits)) if normalize == "sigmoid" else logits
            out[b, i, h] = sum((x * w for x, w in zip(values, weights)), np.zeros(v.shape[3]))
            continue
        terms = np.append(logits, arrays["sinks"][h]) if "sinks" in arrays else logits
        if len(terms):
            lse[b, i, h] = np.logaddexp.reduce(terms)
            out[b, i, h] = sum(
                (value * math.exp(x - lse[b, i, h]) for value, x in zip(values, logits)), np.zeros(v.shape[3])
            )
    return out, lse


@pytest.mark.parametrize("causal", tiered([True, False], bool))
def test_documents_of_a_row_are_as_if_alone(causal: bool) -> None:
    """Outputs, log-sum-exps and gradients, in chunks; alone by the reference."""
    lengths = (1, 150, 49) if causal else (3, 400, 1, 197)
    ids = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[None]

    def run(qkv: tuple[jax.Array, ...], cotangent: jax.Array, **segments: Any) -> Any:
        call = functools.partial(attention, causal=causal, return_lse=True, **segments)
        (out, lse), pullback = jax.vjp(call, *qkv)
        return (out, *pullback((cotangent, lse)), lse)

    with jax.enable_x64(True):
        *qkv, cotangent = jnp.asarray(np.random.default_rng(0).standard_normal((4, 1, sum(lengths), 2, 4)))
        packed = jax.jit(run)(tuple(qkv), cotangent, query_segments=ids, key_segments=ids)
        start = 0
        for length in lengths:
            part = slice(start, start + length)
            with dispatch.use("reference"):
                alone = jax.jit(run)(tuple(x[:, part] for x in qkv), cotangent[:, part])
            for got, want in zip(packed, alone, strict=True):
                np.testing.assert_allclose(got[:, part], want, rtol=1e-10, atol=1e-10)
            start += length


def test_weights_times_values_are_the_output() -> None:
    q, k, v = (jnp.asarray(x, jnp.float32) for x in np.random.default_rng(0).standard_normal((3, 2, 9, 4, 8)))
    sinks, mask = jnp.arange(4.0), jnp.arange(9) != 3
    options = {"sinks": sinks, "mask": mask, "causal": True}
    weights = jax.jit(lambda: attention_weights(q, k, **options))()
    assert weights.shape == (2, 4, 9, 9)
    assert not weights[..., 3].any()
    out = jax.jit(lambda: attention(q, k, v, **options))()
    np.testing.assert_allclose(np.einsum("bhqk,bkhd->bqhd", weights, v), out, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    tiered([{}, {"causal": True}, {"window": (128, 128)}], lambda options: options == {"causal": True}),
    ids=str,
)
def test_temporary_memory_of_the_gradient_is_linear_in_length(options: dict) -> None:
    """Of all chunks with all keys, of a few runs of chunks, and of chunks with a band."""

    def temporary(length: int) -> int:
        x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        arrays = {
            "mask": jax.ShapeDtypeStruct((1, 1, 1, length), jnp.bool_),
            **dict.fromkeys(("query_segments", "key_segments"), jax.ShapeDtypeStruct((1, length), jnp.int32)),
        }

        def loss(q: jax.Array, k: jax.Array, v: jax.Array, arrays: dict[str, jax.Array]) -> jax.Array:
            return jnp.sum(attention(q, k, v, implementation="xla", **arrays, **options) ** 2)

        program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x, arrays).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(8192) < 2.2 * temporary(4096)


@pytest.mark.parametrize(
    "name",
    tiered(
        ["padding_causal_grouped", "bias_per_head", "sinks_empty_rows", "long_cache"],
        lambda name: name == "padding_causal_grouped",
    ),
)
def test_rows_that_take_turns_are_as_those_computed_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if case.name == name)
    arrays = case.arrays(np.random.default_rng(0))
    rows, queries, heads, _ = arrays["q"].shape
    shared = {n: x for n, x in arrays.items() if n == "sinks" or x.shape[0] != rows}
    arrays = {n: jnp.tile(x, (9 // rows + 1, *[1] * (x.ndim - 1)))[:9] for n, x in arrays.items() if n not in shared}
    arrays["q"] = arrays["q"] * jnp.linspace(0.5, 2.0, 9)[:, None, None, None]

    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        rest = {n: x for n, x in arrays.items() if n not in ("q", "k", "v")}
        out, pullback = jax.vjp(
            lambda *qkv: attention(*qkv, **rest, **shared, **case.options, implementation="xla"), q, k, v
        )
        return out, pullback(jax.tree.map(jnp.cos, out))

    given = (arrays["q"], arrays["k"], arrays["v"])
    together = jax.jit(run)(*given)
    loops = str(jax.make_jaxpr(lambda *qkv: run(*qkv))(*given)).count("scan[")
    xla = importlib.import_module("pallas_kernels.attention.xla")
    # Two rows at a time, and one left over; of a form in chunks one.
    block = 1 if name.startswith("long") else 2 * 4 * heads * queries * arrays["k"].shape[1]
    monkeypatch.setattr(xla, "BLOCK_BYTES", {"cpu": block})
    assert str(jax.make_jaxpr(lambda *qkv: run(*qkv))(*given)).count("scan[") > loops
    in_turns = jax.jit(lambda *qkv: run(*qkv))(*given)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), in_turns, together)


def test_many_rows_do_not_hold_all_their_logits() -> None:
    x = jax.ShapeDtypeStruct((64, 512, 4, 16), jnp.float32)
    run = jax.jit(functools.partial(attention, implementation="xla"))
    assert run.lower(x, x, x).compile().memory_analysis().temp_size_in_bytes < 64 * 4 * 512 * 512 * 4 / 3


def test_finite_keys_of_a_cache_are_not_copied() -> None:
    """With ``finite=True`` the results are the same, and no array of the keys' size is selected."""
    q, k, v = (jax.random.normal(jax.random.key(i), (2, n, 3, 8)) for i, n in enumerate((1, 48, 48)))
    places = {
        "query_positions": jnp.full((2, 1), 20),
        "key_positions": jnp.where(jnp.arange(48) < 30, jnp.arange(48), -1),
    }
    places["key_positions"] = jnp.broadcast_to(places["key_positions"], (2, 48))

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, finite: bool) -> jax.Array:
        return attention(q, k, v, causal=True, **places, finite=finite, implementation="xla")

    def selects(finite: bool) -> bool:
        return "f32[2,3,48,8] = select_n" in str(jax.make_jaxpr(functools.partial(attend, finite=finite))(q, k, v))

    np.testing.assert_array_equal(attend(q, k, v, True), attend(q, k, v, False))
    assert selects(False)
    assert not selects(True)


@pytest.mark.parametrize("length", [9, 520])
def test_bfloat16_keeps_float32_statistics(length: int) -> None:
    """With 520 nearly equal weights a bfloat16 sum would stop at 256; the inputs and outputs are rounded, nothing
    between.
    """
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in np.random.default_rng(0).standard_normal((3, 1, length, 1, 8)))

    @functools.partial(jax.jit, static_argnames="implementation")
    def run(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str) -> Any:
        out, pullback, lse = jax.vjp(
            lambda *a: attention(*a, scale=0.03, return_lse=True, implementation=implementation), q, k, v, has_aux=True
        )
        return out, lse, pullback(jnp.cos(v))

    out, lse, gradients = run(q, k, v, "xla")
    assert lse.dtype == jnp.float32
    exact_out, exact_lse, exact_gradients = run(*(x.astype(jnp.float32) for x in (q, k, v)), "reference")
    np.testing.assert_allclose(lse, exact_lse, rtol=1e-5)
    for got, want in zip((out, *gradients), (exact_out, *exact_gradients)):
        assert got.dtype == jnp.bfloat16
        # bfloat16 has 8 bits: one rounding of the weights, one of the result.
        assert jnp.max(jnp.abs(got.astype(jnp.float32) - want)) < 2**-6 * jnp.max(jnp.abs(want))


# Keys that a score takes away; of all but the first, the score's own derivative is no number there, or rows are left
# with no key at all.
GONE = {
    "chosen": lambda x, head, q, k: jnp.where(q - k < 3, x, -jnp.inf),
    "added": lambda x, head, q, k: x + jnp.where(q > 4, 0.0, -jnp.inf),
    "logarithm": lambda x, head, q, k: jnp.log(jax.nn.sigmoid(x) * (k <= q)),
    "rectified": lambda x, head, q, k: jnp.log(jnp.maximum(x, 0)),
}


@pytest.mark.parametrize(
    ("score", "implementation", "length"),
    [
        *(("logarithm", *form) for form in (("reference", 9), ("xla", 9), ("xla", 600), ("mosaic_tpu", 9))),
        *(pytest.param(score, "xla", 9, marks=pytest.mark.full) for score in ("chosen", "rectified")),
        *(pytest.param("added", *form, marks=pytest.mark.full) for form in (("xla", 600), ("mosaic_tpu", 9))),
    ],
)
def test_a_score_of_minus_infinity_gives_no_gradient(score: str, implementation: str, length: int) -> None:
    q, k, v = (jnp.asarray(x, jnp.float32) for x in np.random.default_rng(0).standard_normal((3, 1, length, 2, 8)))

    @jax.jit
    def gradients(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        call = functools.partial(attention, score=GONE[score], implementation=implementation)
        return jax.grad(lambda *qkv: jnp.sum(jnp.sin(call(*qkv))), (0, 1, 2))(q, k, v)

    with dispatch.interpreting():
        found = gradients(q, k, v)
    assert all(np.isfinite(g).all() for g in found)
    # A logarithm of 0 plus a small number is finite, and takes away as much, unless it takes away all.
    kept = {
        "logarithm": lambda x, head, q, k: jnp.log(jax.nn.sigmoid(x) * (k <= q) + 1e-30),
        "rectified": lambda x, *_: jnp.log(jnp.maximum(x, 1e-30)),
    }
    if score in kept and length == 9:
        plain = functools.partial(attention, score=kept[score], implementation="reference")
        wanted = jax.jit(jax.grad(lambda *qkv: jnp.sum(jnp.sin(plain(*qkv))), (0, 1, 2)))(q, k, v)
        for got, want in zip(found, wanted):
            np.testing.assert_allclose(got, want, atol=1e-4)


X = jax.ShapeDtypeStruct((2, 5, 4, 8), jnp.float32)


def like(shape: tuple[int, ...], dtype: type = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": like((2, 5, 4, 7))}, "agree in batch and head_dim"),
        ({"v": like((2, 6, 4, 8))}, "agree in batch, length and heads"),
        ({"q": like((2, 5, 8))}, "q must be floating (batch, length, heads, head_dim)"),
        ({"q": like((2, 5, 4, 8), np.int32)}, "q must be floating"),
        ({"k": like((2, 5, 3, 8)), "v": like((2, 5, 3, 8))}, "3 heads of k divide the 4 of q"),
        ({"k": like((2, 0, 4, 8)), "v": like((2, 0, 4, 8))}, "lengths must be positive"),
        ({"bias_rest": like((4, 1, 5))}, "bias_rest is what is left of a softmax's bias, of its shape"),
        ({"bias": like((2, 3, 5, 5))}, "does not broadcast to (batch, heads, q_length, k_length) = (2, 4, 5, 5)"),
        ({"mask": like((5, 6), np.bool_)}, "mask (5, 6) does not broadcast"),
        ({"mask": like((5, 5))}, "mask must be bool"),
        ({"score": lambda x, head, q, k: q < k}, "the function score must be elementwise and return floating"),
        ({"mask": lambda q, k: q - k}, "the function mask must be elementwise and return bool"),
        ({"mask": lambda q, k: np.array([0, 1, 2]) < k - q}, "uses an array from outside"),
        ({"sinks": like((3,))}, "sinks must be (heads,) = (4,)"),
        ({"normalize": "relu"}, 'normalize is "softmax", "sigmoid" or "none"'),
        ({"normalize": "none", "return_lse": True}, "none weights have no denominator"),
        ({"rows": like((2, 5, 4))}, "rows are numbers for score="),
        (
            {"rows": like((2, 4, 4)), "score": lambda x, h, q, k, r: x * r},
            "rows must be floating (batch or 1, q_length, heads or 1) = (2, 5, 4)",
        ),
        ({"relative_bias": like((3, 9))}, "relative_bias must be (heads or 1, span) for 4 heads"),
        ({"relative_keys": like((4, 9, 7))}, "relative_keys must be (heads or 1, span, head_dim)"),
        ({"relative_query": X}, "relative_query is of q's shape (2, 5, 4, 8), for relative_keys"),
        ({"mask": masks.ByHead((masks.causal(),) * 3)}, "masks of 3 heads are given, for 4 heads of queries"),
        ({"window": (-1, 2)}, "window must be (left, right)"),
        ({"query_positions": like((2, 4), np.int32)}, "query_positions must be integer (batch, length) = (2, 5)"),
        ({"query_segments": like((2, 5), np.int32)}, "query_segments and key_segments are given together"),
        (
            {"query_segments": like((2, 5), np.int32), "key_segments": like((2, 4), np.int32)},
            "key_segments must be integer (batch, length) = (2, 5)",
        ),
        (
            {"routes": like((2, 3, 5, 1), np.int32)},
            "routes must be integer (batch, heads, regions, topk) = (2, 4, ...)",
        ),
        ({"routes": like((2, 1, 2, 1), np.int32)}, "2 regions must divide 5 queries, and 2 regions 5 keys"),
        ({"routes": like((2, 1, 5, 1), np.int32), "key_regions": 2}, "2 regions 5 keys"),
        ({"key_regions": 5}, "key_regions is for routes="),
        ({"routes": like((1, 4, 5, 6), np.int32)}, "of them 1 to all are attended to, not 6"),
        ({"implementation": "flash"}, "no implementation 'flash'"),
    ],
)
def test_misfits_are_refused(arguments: dict, message: str) -> None:
    arrays = {"q": X, "k": X, "v": X, **{n: x for n, x in arguments.items() if isinstance(x, jax.ShapeDtypeStruct)}}
    options = {n: x for n, x in arguments.items() if n not in arrays}
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(lambda arrays: attention(**arrays, **options), arrays)


@pytest.mark.parametrize(
    ("axis", "implementation", "options", "reason"),
    [
        ("tensor", "mosaic_tpu", {"score": lambda x, head, q, k: x * head}, "depends on the head, and the mesh"),
        ("sequence", "all_to_all", {"score": lambda x, head, q, k: x * head}, "score is given"),
        ("tensor", "mosaic_tpu", {"relative_bias": like((4, 9))}, "relative_bias is given, which its tiles don't read"),
        ("tensor", "mosaic_tpu", {"normalize": "none"}, 'not "none"'),
        ("sequence", "ring", {"relative_weight": like((4, 9))}, "relative_weight is given"),
        ("sequence", "all_to_all", {"routes": like((2, 1, 4, 2), np.int32)}, "routes are given"),
        ("sequence", "ring", {"mask": masks.segments(4)}, "its masks are of keys, or causal"),
    ],
)
def test_what_devices_do_not_share_is_refused(
    axis: str, implementation: str, options: dict[str, Any], reason: str
) -> None:
    x = like((2, 8, 4, 8))
    arrays = {n: a for n, a in options.items() if isinstance(a, jax.ShapeDtypeStruct)}
    rest = {n: a for n, a in options.items() if n not in arrays}
    mesh = AbstractMesh((2,), (axis,), axis_types=(AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(mesh), dispatch.platform("tpu"), pytest.raises(dispatch.Refused, match=reason):
        jax.eval_shape(lambda x, arrays: attention(x, x, x, **arrays, **rest, implementation=implementation), x, arrays)


@pytest.mark.parametrize(
    "mask",
    [
        masks.global_and_random(1024, 32, first=1, random=2),
        masks.Global(40) | masks.window(60, 3),
        masks.ByHead((masks.FieldOfView(32, 270.0, 90.0), masks.segments(256))),
    ],
)
def test_the_cost_of_a_mask_follows_its_density(mask: masks.Mask | masks.ByHead) -> None:
    """Operations of the form that computes blocks, over those of dense attention; density counts its own blocks."""
    x = jax.ShapeDtypeStruct((1, 1024, 2, 16), jnp.float32)
    parts = mask.parts if isinstance(mask, masks.ByHead) else (mask,)
    density = np.mean([cover(part, 1024, 1024, lists.CHUNK, lists.BLOCK).some.mean() for part in parts])
    assert density < lists.WORTH

    def forward(q: jax.Array, m: Any) -> jax.Array:
        return attention(q, q, q, mask=m, implementation="xla").sum()

    for run in (forward, jax.grad(forward)):
        dense, masked = (operations.count(lambda q, m=m, run=run: run(q, m), x).total for m in (None, mask))
        assert masked < 1.3 * density * dense


@pytest.mark.parametrize("angle", [45.0, 90.0, 180.0])
def test_a_field_of_view_is_what_its_angle_says(angle: float) -> None:
    """Against the angles between directions, computed; fields of equal values are equal."""
    height, width, prefix = 5, 7, 2
    at = np.arange(prefix + height * width)
    rows, columns = (at - prefix) // width, (at - prefix) % width
    across, up = columns[None] - columns[:, None], rows[:, None] - rows[None]
    for middle in np.arange(8) * 45 + angle / 2:
        seen = masks.FieldOfView(width, float(middle), angle, prefix)
        between = (np.degrees(np.arctan2(up, across)) - middle + 180) % 360 - 180
        expected = (abs(between) <= angle / 2 + 1e-9) | ((across == 0) & (up == 0))
        expected[:prefix] = expected[:, :prefix] = True
        np.testing.assert_array_equal(seen(at[:, None], at[None]), expected)
        assert {seen: 0} == {masks.FieldOfView(width, float(middle), angle, prefix): 0}
    with pytest.raises(ValueError, match="edges at multiples of 45 degrees"):
        masks.FieldOfView(width, 10.0, angle)


def test_heads_with_routes_of_their_own_are_one_loop() -> None:
    """The program has as many equations for 12 heads as for 2."""

    def equations(heads: int) -> int:
        x = jax.ShapeDtypeStruct((1, 64, heads, 8), jnp.float32)
        routes = jax.ShapeDtypeStruct((1, heads, 8, 3), jnp.int32)
        step = jax.grad(lambda x, routes: attention(x, x, x, routes=routes, implementation="xla").sum())
        return str(jax.make_jaxpr(step)(x, routes)).count(" = ")

    assert equations(2) == equations(12) > 0


def test_an_empty_part_takes_no_part() -> None:
    a, some = np.ones((1, 2, 1, 3), np.float32), np.zeros((1, 2, 1), np.float32)
    none = some - np.inf

    @jax.jit
    def run(lse: jax.Array) -> Any:
        out, pull, merged = jax.vjp(lambda lse: merge([(a, lse), (2 * a, none)]), lse, has_aux=True)
        return out, merged, pull(jnp.ones_like(out))[0]

    for lse, expected in ((some, (a, some)), (none, (0 * a, none, 0 * some))):
        for got, wanted in zip(run(lse), expected):
            np.testing.assert_array_equal(got, wanted)
