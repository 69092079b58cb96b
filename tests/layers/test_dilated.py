"""Dilated attention against the paper's equations in float64 and against outputs of torchscale; what each head sees,
what it costs, what it refuses.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import DilatedAttention, MultiHeadAttention, assign
from tests.compilation import program
from tests.layers.mixer_cases import relative
from tests.references import longnet
from tests.tiers import tiered


def seen(length: int, segment: int, rate: int, offset: int, causal: bool) -> np.ndarray:
    """Which keys (columns) a query sees by one pair: of its segment, both at the head's offset."""
    place = np.arange(length)
    kept = place % segment % rate == offset
    same = place[:, None] // segment == place // segment
    return same & kept[:, None] & kept & (~causal | (place <= place[:, None]))


def formula(layer: DilatedAttention, weights: dict[str, jax.Array], x: jax.Array, real: np.ndarray) -> jax.Array:
    """y of one row x (length, features): O_i by its own softmax, mixed by denominators, in the precision of the
    arguments.
    """
    length, heads = len(x), layer.num_heads
    q, k, v = (
        (x @ weights[f"{n}.kernel"] + weights[f"{n}.bias"]).reshape(length, heads, -1)
        for n in ("query", "key", "value")
    )
    exponentials = jnp.exp(jnp.einsum("qhd,khd->hqk", q, k) / np.sqrt(layer.head_dim))
    total, mixed = jnp.zeros((heads, length)), jnp.zeros((heads, length, layer.head_dim))
    for segment, rate in layer.pairs:
        offsets = [h // -(-heads // rate) for h in range(heads)]
        shown = exponentials * (np.stack([seen(length, segment, rate, o, layer.causal) for o in offsets]) & real)
        denominator = shown.sum(2)
        out = jnp.einsum("hqk,khd->hqd", shown / jnp.where(denominator == 0, 1.0, denominator)[..., None], v)
        total, mixed = total + denominator, mixed + denominator[..., None] * out
    y = mixed / jnp.where(total == 0, 1.0, total)[..., None]
    return y.swapaxes(0, 1).reshape(length, -1) @ weights["out.kernel"] + weights["out.bias"]


def make(**options: Any) -> DilatedAttention:
    """A layer with weights that spread the scores."""
    layer = DilatedAttention(
        16, **{"num_heads": 4, "segments": (4, 8, 16), "rates": (1, 2, 4), **options}, rngs=nnx.Rngs(0)
    )
    rng = np.random.default_rng(1)
    assign(
        layer,
        {n: jnp.asarray(0.4 * rng.standard_normal(w.shape), jnp.float32) for n, w in layers.flatten(layer).items()},
    )
    return layer


@pytest.mark.parametrize(
    ("length", "options", "causal"),
    tiered(
        [
            (32, {}, True),
            (23, {}, True),
            (23, {}, False),
            (3, {}, True),
            (29, {"segments": (5, 7, 50), "rates": (1, 3, 4)}, False),
            # Four heads at a rate of eight: some tokens are seen by no head of a pair.
            (21, {"segments": (8, 16), "rates": (2, 8)}, True),
            (18, {"segments": (6,), "rates": (4,), "num_heads": 2}, False),
        ],
        lambda case: case[0] in (21, 23) and case[2],
    ),
)
def test_is_the_formula_and_so_is_its_gradient(length: int, options: dict[str, Any], causal: bool) -> None:
    layer = make(causal=causal, **options)
    graph, state = nnx.split(layer)
    rng = np.random.default_rng(length)
    x, weight = rng.standard_normal((2, 1, length, 16)).astype(np.float32)
    real = np.arange(length) < max(length - 2, 2)

    def loss(state: nnx.State, x: jax.Array) -> Any:
        y = nnx.merge(graph, state)(x, jnp.asarray(real)[None])
        return jnp.sum(jnp.where(real[:, None], y * weight[0], 0)), y

    (_, y), (gradient, dx) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(state, jnp.asarray(x, jnp.float32))
    with jax.enable_x64(True):
        weights = {n: jnp.asarray(w, jnp.float64) for n, w in layers.flatten(layer).items()}

        def wanted_loss(weights: dict[str, jax.Array], x: jax.Array) -> Any:
            y = formula(layer, weights, x, real)
            return jnp.sum(jnp.where(real[:, None], y * weight[0], 0)), y

        (_, want), (want_gradient, want_dx) = jax.jit(jax.value_and_grad(wanted_loss, (0, 1), has_aux=True))(
            weights, jnp.asarray(x[0])
        )
    assert relative(y[0][real], want[real]) < 1e-5
    assert relative(dx[0], want_dx) < 1e-5
    got = layers.state.flatten_state(gradient)
    scale = max(float(np.abs(w).max()) for w in want_gradient.values())
    assert got.keys() == want_gradient.keys()
    assert all(
        np.abs(np.asarray(got[n], np.float64) - np.asarray(w)).max() < 1e-5 * scale for n, w in want_gradient.items()
    )


@pytest.mark.parametrize("causal", [False, True])
def test_one_pair_of_the_whole_length_is_plain_attention(causal: bool) -> None:
    options: dict[str, Any] = {"num_heads": 4, "causal": causal, "rotary": 100.0, "qk_norm": "rms"}
    plain = MultiHeadAttention(16, **options, rngs=nnx.Rngs(3))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 19, 16)), jnp.float32)
    want = program(plain)(x)
    for segment in (19, 64):
        layer = DilatedAttention(16, segments=(segment,), rates=(1,), **options, rngs=nnx.Rngs(0))
        assign(layer, layers.flatten(plain))
        assert relative(program(layer)(x), want) < 1e-6


@pytest.mark.parametrize("name", longnet.CASES)
def test_equal_to_torchscale(name: str) -> None:
    """The forward pass, recorded, at lengths that every segment divides: elsewhere theirs attends to padding."""
    x, weights, want = longnet.load(name)
    heads, segments, rates, causal, inner = longnet.CASES[name]
    options = {"num_heads": heads, "segments": segments, "rates": rates, "causal": causal, "inner_norm": inner}
    layer = DilatedAttention(longnet.FEATURES, **options, rngs=nnx.Rngs(0))
    assign(layer, {n: jnp.asarray(w) for n, w in weights.items()})
    assert relative(jax.jit(layer.__call__)(x), want) < 2e-6


@pytest.mark.parametrize(("heads", "rate"), [(4, 1), (4, 2), (4, 4), (12, 6), (12, 12), (6, 4)])
def test_heads_cover_every_offset(heads: int, rate: int) -> None:
    offsets = make(num_heads=heads, head_dim=4, segments=(16,), rates=(rate,))._offsets(rate)
    assert set(offsets) == set(range(rate)) if heads % rate == 0 else set(offsets) <= set(range(rate))


def test_memory_is_linear_in_length() -> None:
    layer = make(causal=True, segments=(64, 256), rates=(1, 4))
    graph, state = nnx.split(layer)

    def temporary(length: int) -> int:
        step = jax.jit(jax.grad(lambda state, x: nnx.merge(graph, state)(x).sum()))
        compiled = step.lower(state, jax.ShapeDtypeStruct((1, length, 16), jnp.float32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(32768) < 4.5 * temporary(8192)


def test_the_state_holds_what_is_needed() -> None:
    """Each pair keeps its segment over its rate, however long the sequence."""
    layer = make(causal=True, segments=(64, 256, 1024), rates=(1, 4, 16))
    assert [k.shape for k in layer.init_state(3).keys] == [(3, 4, 64, 4)] * 3
    assert [k.shape for k in layer.init_state(3, max_length=100).keys] == [(3, 4, 64, 4), (3, 4, 25, 4), (3, 4, 7, 4)]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="each segment length needs a rate"):
        make(segments=(4, 8), rates=(1,))
    with pytest.raises(ValueError, match="each segment length needs a rate"):
        make(segments=(4,), rates=(5,))
    with pytest.raises(NotImplementedError, match="not causal"):
        make().init_state(1)
    layer = make(causal=True, segments=(16,), rates=(1,))
    x = jnp.ones((1, 13, 16))
    with pytest.raises(ValueError, match="holds 12 tokens and 13 are needed"):
        layer.extend(x, layer.init_state(1, max_length=12))
