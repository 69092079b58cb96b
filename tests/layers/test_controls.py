"""The controls that mixers are compared with: distances, connections and no state, written out in numpy."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import Diagnostic, Tokens, collecting
from layers.initializers import truncated_normal
from tests.compilation import program
from tests.layers.mixer_cases import relative

GRID = (3, 4)
PLACES = np.stack(np.meshgrid(*map(np.arange, GRID), indexing="ij"), -1).reshape(-1, 2)


def reported(mixer: nnx.Module, x: np.ndarray, tokens: Tokens | None, name: str) -> np.ndarray:
    """What one run of ``mixer`` sows under ``name``."""

    def run(mixer: Any, x: Any) -> Any:
        with collecting(Diagnostic, name) as sown:
            mixer(x, tokens)
        return sown.named(mixer, Diagnostic)[name]

    return np.asarray(program(run)(mixer, x))


@pytest.mark.parametrize("distance", ["manhattan", "index", "none"])
def test_distances_of_manhattan_attention(distance: Any) -> None:
    """Logarithms of weights, less those without a distance, are the penalties but for a constant of each query."""
    x = np.random.default_rng(0).standard_normal((1, *GRID, 8)).astype(np.float32)

    def logs(distance: Any) -> np.ndarray:
        mixer = layers.ManhattanAttention(8, num_heads=2, distance=distance, rngs=nnx.Rngs(0))
        return np.log(reported(mixer, x, None, "attention")[0])

    index = np.arange(len(PLACES))
    wanted = {
        "manhattan": np.abs(PLACES[:, None] - PLACES).sum(-1),
        "index": np.abs(index[:, None] - index),
        "none": np.zeros((12, 12)),
    }
    slopes = -np.log1p(-np.exp2([-2.0, -4.0]))
    penalties = -slopes[:, None, None] * wanted[distance]
    found = logs(distance) - logs("none")
    found, penalties = (a - a[..., :1] for a in (found, penalties))
    np.testing.assert_allclose(found, penalties, atol=1e-5)


def test_a_distance_in_row_major_order_has_no_decomposed_form() -> None:
    with pytest.raises(ValueError, match="give decomposed=False"):
        layers.ManhattanAttention(8, num_heads=2, distance="index", decomposed=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match='distance is "manhattan", "index" or "none"'):
        layers.ManhattanAttention(8, num_heads=2, distance="columns", rngs=nnx.Rngs(0))  # type: ignore[arg-type]


def connected(connections: Any, **options: Any) -> np.ndarray:
    """Bool (heads, tokens of the grid, tokens), with two prefix tokens and a quarter of 14 tokens to see."""
    x = np.random.default_rng(0).standard_normal((1, 14, 8)).astype(np.float32)
    sizes = {"num_heads": 2, "grid": GRID, "prefix": 2, "tokens_per_mixture": 3, "threshold": 0.0, **options}
    mixer = layers.PredictedSparseAttention(8, keep=0.25, connections=connections, rngs=nnx.Rngs(0), **sizes)
    return reported(mixer, x, Tokens(grid=GRID), "connections")[0]


def test_connections_of_predicted_attention() -> None:
    """Each sees as many: of the controls the nearest, which the prefix is too, or those that were drawn."""
    (near,) = connected("nearest")
    distance = np.hypot(*np.moveaxis(PLACES[:, None] - PLACES, -1, 0))
    assert (near.sum(-1) == 4).all()
    assert near[:, :2].all(), "the prefix is at no distance"
    for row, seen in enumerate(near[:, 2:]):
        assert distance[row][seen].max() <= distance[row][~seen].min()
    (drawn,), (other,) = connected("random"), connected("random", index=1)
    assert (drawn.sum(-1) == 4).all()
    assert (drawn != other).any(), "each block draws its own"
    assert len(np.unique(drawn, axis=0)) > 6
    predicted = connected("predicted", kernel_init=truncated_normal(0.5))
    assert predicted.shape == (2, 12, 14)
    assert (predicted.sum(-1) == 4).all()
    with pytest.raises(ValueError, match='connections is "predicted", "nearest" or "random"'):
        connected("all")


def test_weights_lie_on_connections() -> None:
    x = np.random.default_rng(0).standard_normal((1, *GRID, 8)).astype(np.float32)
    mixer = layers.PredictedSparseAttention(
        8, num_heads=2, keep=0.3, connections="nearest", kernel_init=truncated_normal(0.5), rngs=nnx.Rngs(0)
    )
    weights, seen = (reported(mixer, x, None, name) for name in ("attention", "connections"))
    np.testing.assert_array_equal(weights > 0, np.broadcast_to(seen, weights.shape))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


def test_mamba_without_a_state_is_a_gated_convolution() -> None:
    mixer = layers.Mamba(4, state_dim=0, rngs=nnx.Rngs(0))
    wide = {name: np.asarray(value, np.float64) for name, value in layers.flatten(mixer, nnx.Param).items()}
    assert set(wide) == {"in_proj.kernel", "conv.kernel", "conv.bias", "D", "out_proj.kernel"}
    x = np.random.default_rng(0).standard_normal((2, 7, 4)).astype(np.float32)
    u, z = np.split(x @ wide["in_proj.kernel"], 2, -1)
    padded = np.pad(u, ((0, 0), (3, 0), (0, 0)))
    taps = wide["conv.kernel"].reshape(4, -1)
    u = sum(padded[:, i : i + 7] * taps[i] for i in range(4)) + wide["conv.bias"]

    def silu(a: np.ndarray) -> np.ndarray:
        return a / (1 + np.exp(-a))

    want = (silu(u) * wide["D"] * silu(z)) @ wide["out_proj.kernel"]
    assert relative(program(mixer)(x), want) < 1e-5


def test_a_single_row_is_written_in_place() -> None:
    """The compiled loop of steps has no copy of the cache, for which a batch of one needs care."""
    mixer = layers.MultiHeadAttention(16, num_heads=4, causal=True, rngs=nnx.Rngs(0))
    graphdef, weights = nnx.split(mixer)

    def steps(weights: Any, x: jax.Array, state: Any) -> Any:
        def step(carry: Any) -> Any:
            count, x, state = carry
            return count + 1, *nnx.merge(graphdef, weights).extend(x, state)

        return jax.lax.while_loop(lambda carry: carry[0] < 8, step, (0, x, state))

    for batch in (1, 2):
        given = weights, jnp.ones((batch, 1, 16)), mixer.init_state(batch, 64)
        text = jax.jit(steps, donate_argnums=2).lower(*given).compile().as_text()
        assert not re.findall(rf"= f32\[{batch},4,64,4\]\S* copy\(", text)
