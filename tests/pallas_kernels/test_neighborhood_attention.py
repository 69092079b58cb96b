"""Loops over the paper's rule as the truth for the reference of test_ops.py, neighborhood attention's halves, its
simulator, and refusals.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import neighborhood_attention, neighborhood_average, neighborhood_scores
from pallas_kernels.neighborhood_attention import speedup
from primitives import operations


def window_of(i: int, length: int, window: int, stride: int, dilation: int, causal: bool, shifted: bool) -> list[int]:
    """The keys of query ``i``, one after the other, as the paper says it."""
    residue, own = i % dilation, i // dilation
    count = len(range(residue, length, dilation))
    group = own // stride
    if causal:
        leader = min(group * stride + stride - 1, count - 1)
        seen = range(max(leader - window + 1, 0), own + 1)
    else:
        leader = min(group * stride + stride // 2, count - 1)
        start = leader - window // 2
        if shifted:
            start = min(max(start, 0), count - window)
        seen = range(max(start, 0), min(start + window, count))
    return [residue + dilation * j for j in seen]


def by_loops(arrays: dict[str, np.ndarray], options: dict[str, Any]) -> tuple[np.ndarray]:
    q, k, v = arrays["q"], arrays["k"], arrays["v"]
    grid, heads = q.shape[1:-2], q.shape[-2]
    usual = {"kernel_size": 1, "stride": 1, "dilation": 1, "causal": False}
    each = {n: x if isinstance(x := options.get(n, d), tuple) else (x,) * len(grid) for n, d in usual.items()}
    shifted = options.get("border", "shift") == "shift"
    scale = options.get("scale", 1 / math.sqrt(q.shape[-1]))
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    for b, *at, h in np.ndindex(q.shape[:-1]):
        axes = [window_of(i, n, *sizes, shifted) for i, n, *sizes in zip(at, grid, *each.values())]
        keys = [key for key in itertools.product(*axes) if "mask" not in arrays or arrays["mask"][(b, *key)]]
        head = h * k.shape[-2] // heads
        logits = np.array([scale * q[(b, *at, h)] @ k[(b, *key, head)] for key in keys])
        if "bias" in arrays:
            offsets = [
                tuple((j - i) // d + w - 1 for i, j, d, w in zip(at, key, each["dilation"], each["kernel_size"]))
                for key in keys
            ]
            logits = logits + np.array([arrays["bias"][(h, *offset)] for offset in offsets])
        weights = np.exp(logits - logits.max(initial=0.0))
        for weight, key in zip(weights / max(weights.sum(), 1e-300), keys):
            out[(b, *at, h)] += weight * v[(b, *key, head)]
    return (out,)


@pytest.mark.parametrize("border", ["shift", "masked"])
def test_the_halves_make_the_whole(border: Any) -> None:
    rng = np.random.default_rng(1)
    window = {"kernel_size": 3, "border": border, "dilation": (1, 2)}

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        products = neighborhood_scores(q, k, **window) / 2
        real = neighborhood_scores(jnp.ones_like(q), jnp.ones_like(k), **window) != 0  # 0 for keys that there are not
        weights = jax.nn.softmax(jnp.where(real, products, -jnp.inf), -1)
        average, pull = jax.vjp(lambda w, v: neighborhood_average(w, v, **window), weights, v)
        return average, neighborhood_attention(q, k, v, **window), pull(jnp.ones_like(average))

    found, wanted, gradient = run(*rng.standard_normal((3, 2, 7, 6, 2, 4)).astype(np.float32))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert all(np.isfinite(x).all() for x in gradient)


def test_the_cost_is_linear() -> None:
    def program(length: int) -> tuple[Any, ...]:
        x = jax.ShapeDtypeStruct((1, length, 16, 1, 8), jnp.float32)
        return lambda q: jax.grad(lambda q: neighborhood_attention(q, q, q, kernel_size=(9, 5)).sum())(q), x

    assert operations.exponent(program, (64, 256, 1024)) == pytest.approx(1.0, abs=0.05)


def test_the_simulator_of_speed_ups() -> None:
    """Windows that are whole tiles reach the ratio of all tokens to those of a window; overlap costs."""
    blocked = {"dilation": (1, 1), "query_tile": (8, 8), "key_tile": (8, 8)}
    assert speedup((64, 64), (16, 16), (16, 16), **blocked) == pytest.approx(64 * 64 / 16**2)
    assert speedup((64, 64), (64, 64), (1, 1), **blocked) == pytest.approx(1.0)
    speeds = [speedup((64, 64), (16, 16), (stride, stride), **blocked) for stride in (1, 4, 16)]
    assert speeds == sorted(speeds)
    assert speeds[0] < speeds[2]
    # Tokens of one residue see no others: a quarter of the tiles before any window.
    assert speedup((64,), (16,), (1,), (4,), (8,), (8,)) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_size": 8}, "a window of 8 tokens, 1 apart, is wider than the 7 there are"),
        ({"stride": 4}, "the stride is 1 to as many"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size is one number or one for each axis"),
        ({"border": "wrap"}, 'border is "shift" or "masked"'),
        ({"bias": np.zeros((2, 5, 4), np.float32)}, "bias is (heads, *(2 kernel_size - 1)) = (2, 5, 5)"),
        ({"mask": np.ones((1, 7, 6), np.float32)}, "mask must be bool (batch or 1, *grid)"),
        ({"v": np.zeros((1, 7, 7, 2, 4), np.float32)}, "must agree in batch, grid and head_dim"),
    ],
)
def test_misfits_are_refused(change: dict[str, Any], message: str) -> None:
    x = np.zeros((1, 7, 8, 2, 4), np.float32)
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)").replace("*", r"\*")):
        neighborhood_attention(**{"q": x, "k": x, "v": x, "kernel_size": 3, **change})
