"""Combiner's patterns against their definition, query by query in float64: values and slopes."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers.initializers import truncated_normal
from layers.sparse.combiner import PATTERNS
from tests.compilation import program
from tests.layers.mixer_cases import relative

FEATURES, HEADS, LENGTH, SEGMENT = 8, 2, 23, 4
WIDTH = FEATURES // HEADS
Weights = dict[str, np.ndarray]
Entry = tuple[np.ndarray, np.ndarray]


def found(q: np.ndarray, entries: list[Entry]) -> np.ndarray:
    """What a query finds among keys and values."""
    scores = np.array([q @ key for key, _ in entries]) / math.sqrt(WIDTH)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum() @ np.array([value for _, value in entries])


def span(q: np.ndarray, k: np.ndarray, v: np.ndarray, tokens: list[int]) -> Entry:
    return k[tokens].max(0), found(q[tokens].max(0), [(k[j], v[j]) for j in tokens])


def seen(pattern: str, i: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, rows: list[Entry]) -> list[Entry]:
    """All keys and values that token i attends to; ``rows`` are those that stand for each token's row."""
    row, column = divmod(i, SEGMENT)
    direct = list(range(row * SEGMENT, i + 1))
    above = [list(range(r * SEGMENT, (r + 1) * SEGMENT)) for r in range(row)]
    if pattern == "log":
        starts = [(((i >> level) - 1) << level, level) for level in range(i.bit_length()) if i >> level & 1]
        return [(k[i], v[i]), *(span(q, k, v, list(range(at, at + 2**level))) for at, level in starts)]
    own = [(k[j], v[j]) for j in direct]
    if pattern == "fixed":
        return own + [span(q, k, v, tokens) for tokens in above]
    if pattern == "axial":
        return own + [rows[tokens[column]] for tokens in above]
    own += [(k[tokens[column]], v[tokens[column]]) for tokens in above]
    if row:
        own += [span(q, k, v, [t[c] for t in above]) for c in range(SEGMENT) if c != column]
    own += [span(q, k, v, tokens[:column]) for tokens in above if column]
    return own + [span(q, k, v, tokens[column + 1 :]) for tokens in above if column + 1 < SEGMENT]


def expected(pattern: str, w: Weights, x: np.ndarray) -> np.ndarray:
    q, k, v = (np.split(x @ w[f"{name}.kernel"], HEADS, -1) for name in ("query", "key", "value"))
    of_rows: list[list[Entry]] = [[] for _ in range(HEADS)]
    if pattern == "axial":
        spans = [list(range(at, min(at + SEGMENT, len(x)))) for at in range(0, len(x), SEGMENT)]
        values = np.zeros((HEADS, len(x), WIDTH))
        for h in range(HEADS):
            for tokens in spans:
                values[h, tokens] = [found(q[h][i], [(k[h][j], v[h][j]) for j in tokens]) for i in tokens]
        hidden = x + np.concatenate(values, -1) @ w["summary.out.kernel"]
        hidden -= hidden.mean(-1, keepdims=True)
        hidden *= w["summary.norm.scale"] / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6)
        keys = np.split((hidden + w["summary.norm.bias"]) @ w["summary.key.kernel"], HEADS, -1)
        of_rows = [list(zip(keys[h], values[h], strict=True)) for h in range(HEADS)]
    heads = [
        [found(q[h][i], seen(pattern, i, q[h], k[h], v[h], of_rows[h])) for i in range(len(x))] for h in range(HEADS)
    ]
    return np.concatenate(heads, -1) @ w["out.kernel"]


def make(pattern: str, segment: int = SEGMENT) -> Any:
    init = truncated_normal(0.5)
    options = {"num_heads": HEADS, "pattern": pattern, "segment": segment, "kernel_init": init, "rngs": nnx.Rngs(0)}
    return layers.CombinerAttention(FEATURES, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_values_and_slopes_of_the_definition(pattern: str) -> None:
    """The slope is that along a random direction in which every parameter moves."""
    layer, rng = make(pattern), np.random.default_rng(1)
    graphdef, state = nnx.split(layer)
    x, cotangent, way = rng.standard_normal((3, LENGTH, FEATURES)).astype(np.float32)

    @jax.jit
    def run(state: nnx.State, x: jax.Array) -> Any:
        def loss(state: nnx.State, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = nnx.merge(graphdef, state)(x[None])[0]
            return jnp.sum(y * cotangent), y

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(state, x)

    (_, got), gradients = run(state, x)
    weights = {name: np.asarray(a, np.float64) for name, a in layers.flatten(layer).items()}
    slopes = {name: np.asarray(a, np.float64) for name, a in layers.flatten(nnx.merge(graphdef, gradients[0])).items()}
    assert relative(got, expected(pattern, weights, x.astype(np.float64))) < 1e-5
    ways, step = {name: rng.standard_normal(a.shape) for name, a in weights.items()}, 1e-6

    def moved(sign: int) -> float:
        there = {name: a + sign * step * ways[name] for name, a in weights.items()}
        return float(np.sum(expected(pattern, there, x.astype(np.float64) + sign * step * way) * cotangent))

    slope = sum(float(np.sum(slopes[name] * ways[name])) for name in ways) + float(np.sum(gradients[1] * way))
    size = math.sqrt(sum(float(np.sum(a**2)) for a in slopes.values()))
    assert abs(slope - (moved(1) - moved(-1)) / (2 * step)) < 1e-4 * size
    assert all(np.abs(a).max() > 0 for a in slopes.values()), "a parameter without effect"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_token_is_reached(pattern: str) -> None:
    """Which a window lacks; and one row of all tokens is causal attention."""
    layer = make(pattern)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, LENGTH, FEATURES)), jnp.float32)
    graphdef, state = nnx.split(layer)
    reach = jax.jit(jax.jacrev(lambda x: nnx.merge(graphdef, state)(x)[0].sum(-1)))(x)[:, 0]
    assert ((np.abs(np.asarray(reach)).max(-1) > 0) == np.tril(np.ones((LENGTH, LENGTH), bool))).all()
    if pattern != "log":
        options = {"num_heads": HEADS, "causal": True, "use_bias": False, "kernel_init": truncated_normal(0.5)}
        plain = layers.MultiHeadAttention(FEATURES, **options, rngs=nnx.Rngs(0))  # type: ignore[arg-type]
        alone = make(pattern, segment=LENGTH + 2)
        layers.assign(alone, layers.flatten(plain))
        assert relative(program(alone)(x), program(plain)(x)) < 1e-6
