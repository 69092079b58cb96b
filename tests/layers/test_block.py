"""Residual branches: norm order, drop path, layer scale, caches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import MLP, Block, Branch, Dropout, DropPath, LayerScale, MultiHeadAttention, Tokens
from layers.initializers import normal
from layers.mixer import Mixer
from tests.compilation import program
from tests.layers.mixer_cases import relative

X = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)


class Doubling(Mixer):
    """Twice its input."""

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        return 2 * x


def normalized(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def test_pre_and_post_norm() -> None:
    pre, post = (Block({"mixer": Doubling()}, features=8, order=order, rngs=nnx.Rngs(0)) for order in ("pre", "post"))
    np.testing.assert_allclose(pre(X), X + 2 * normalized(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(post(X), normalized(3 * X), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="is one of pre, post"):
        Block({"mixer": Doubling()}, features=8, order="beside", rngs=nnx.Rngs(0))


def test_layer_scale_multiplies_the_branches() -> None:
    plain, scaled = (
        Block({"mixer": Doubling()}, features=8, layer_scale=scale, rngs=nnx.Rngs(0)) for scale in (None, 0.1)
    )
    np.testing.assert_allclose(scaled(X) - X, 0.1 * (plain(X) - X), rtol=1e-4, atol=1e-5)
    assert LayerScale(3, 1e-5, rngs=nnx.Rngs(0)).scale.shape == (3,)


def test_position_comes_first_and_the_channel_mixer_last() -> None:
    mlp = MLP(8, 16, rngs=nnx.Rngs(0))
    block = Block(
        {"position": Branch(Doubling(), norm=None), "mixer": Doubling(), "channel": mlp}, features=8, rngs=nnx.Rngs(0)
    )
    h = 3 * X
    h = h + 2 * normalized(h)
    np.testing.assert_allclose(block(X), h + mlp(normalized(h)), rtol=1e-4, atol=1e-4)


def test_drop_path_drops_examples_at_its_rate_and_keeps_the_mean() -> None:
    drop = DropPath(0.3, rngs=nnx.Rngs(0))
    y = np.asarray(drop(jnp.ones((4000, 2, 3))))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    assert (y == y[:, :1, :1]).all()  # an example is dropped whole
    # Four standard errors of 4000 draws.
    assert np.mean(y[:, 0, 0] == 0) == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 4000))
    assert not np.array_equal(drop(jnp.ones((4000, 2, 3))), y)
    drop.eval()
    np.testing.assert_array_equal(drop(X), X)


def test_dropout_drops_entries_at_its_rate_and_keeps_the_mean() -> None:
    drop = Dropout(0.3, rngs=nnx.Rngs(0))
    y = np.asarray(drop(jnp.ones((40, 50, 30))))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    assert np.mean(y == 0) == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / y.size))
    assert not np.array_equal(drop(jnp.ones((40, 50, 30))), y)
    drop.eval()
    np.testing.assert_array_equal(drop(X), X)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
@pytest.mark.parametrize("layer", [DropPath, Dropout])
def test_what_drops_refuses_other_rates(layer: Any, rate: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        layer(rate, rngs=nnx.Rngs(0))


def causal_attention(**options: object) -> MultiHeadAttention:
    return MultiHeadAttention(8, num_heads=2, causal=True, rngs=nnx.Rngs(0), **options)


def test_a_full_cache_refuses_more() -> None:
    attention = causal_attention()
    mask = np.array([[True, False], [False, False]])  # one more real token in the first row: full

    @jax.jit
    def fill(state: Any) -> Any:
        return attention.extend(X[:, :2], attention.extend(X, state)[1], mask)[1]

    state = fill(attention.init_state(2, max_length=6))
    with pytest.raises(ValueError, match=r"holds 6 tokens.*max_length"):
        attention.extend(X[:, :1], state)
    with pytest.raises(ValueError, match="needs max_length"):
        attention.init_state(2)


def test_a_window_is_a_ring() -> None:
    attention = causal_attention(window=3)
    extend, state = program(attention, "extend"), attention.init_state(2, max_length=100)
    assert state.key.shape[1] == 3  # no more than the window is kept
    parts = []
    for i in range(5):
        y, state = extend(X[:, i : i + 1], state)
        parts.append(y)
    assert relative(np.concatenate(parts, 1), program(attention)(X)) < 1e-5


def test_cross_attention_reads_its_context_from_the_state() -> None:
    attention = MultiHeadAttention(8, num_heads=2, context_features=4, rngs=nnx.Rngs(0))
    context = np.random.default_rng(1).standard_normal((2, 7, 4)).astype(np.float32)

    @jax.jit
    def both(x: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, _ = attention.extend(x, attention.init_state(2, context=context))
        return y, attention(x, Tokens(context=context))

    assert relative(*both(X, context)) < 1e-5
    with pytest.raises(ValueError, match="needs a context"):
        attention(X)


class Adding(nnx.Module):
    """Its input plus a number."""

    def __init__(self, number: float):
        self.number = number

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.number


def test_sandwich_and_res_post_norm() -> None:
    sandwich, res_post = (
        Block({"mixer": Doubling()}, features=8, order=order, rngs=nnx.Rngs(0)) for order in ("sandwich", "res_post")
    )
    scale = np.linspace(0.5, 2, 8).astype(np.float32)
    sandwich.mixer_norm.scale[...], sandwich.mixer_post_norm.scale[...], res_post.mixer_norm.scale[...] = (
        scale,
        scale,
        scale,
    )
    np.testing.assert_allclose(sandwich(X), X + scale * normalized(2 * scale * normalized(X)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(res_post(X), X + scale * normalized(2 * X), rtol=1e-4, atol=1e-4)


def test_parallel_branches_read_what_the_one_before_reads() -> None:
    branches = {
        "mixer": Doubling(),
        "channel": Branch(Adding(1.0), order="parallel", norm=None),
        "more": Branch(Adding(2.0), order="parallel"),
    }
    block = Block({**branches, "last": Branch(Adding(3.0), norm=None)}, features=8, rngs=nnx.Rngs(0))
    block.mixer_norm.scale[...] = 2.0
    h = 2 * normalized(X)
    y = X + 2 * h + (h + 1) + (normalized(X) + 2)
    np.testing.assert_allclose(block(X), y + (y + 3), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="'mixer' is the first branch"):
        Block({"mixer": Branch(Doubling(), order="parallel")}, features=8, rngs=nnx.Rngs(0))


def test_a_parallel_branch_without_norm_has_the_scale_and_drop_path_of_the_one_before() -> None:
    branches = {"mixer": Doubling(), "channel": Branch(Adding(1.0), order="parallel", norm=None)}
    block = Block(branches, features=8, layer_scale=0.5, drop_path=0.5, rngs=nnx.Rngs(0))
    assert {"channel_norm", "channel_scale", "channel_drop"}.isdisjoint(vars(block))
    block.eval()
    h = normalized(X)
    np.testing.assert_allclose(block(X), X + 0.5 * (2 * h + h + 1), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="'channel' has no norm and so is part of 'mixer'"):
        Block(
            {"mixer": Doubling(), "channel": Branch(Adding(1.0), order="parallel", norm=None, scale=1.0)},
            features=8,
            rngs=nnx.Rngs(0),
        )


def test_the_skip_may_be_scaled() -> None:
    block = Block({"mixer": Branch(Doubling(), norm=None, skip=Adding(5.0))}, features=8, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(block(X), (X + 5) + 2 * X, rtol=1e-6)


def test_only_cross_attention_gets_the_context() -> None:
    rngs = nnx.Rngs(0)
    cross = MultiHeadAttention(8, num_heads=2, context_features=4, rngs=rngs)
    block = Block({"mixer": causal_attention(), "cross": cross}, features=8, rngs=rngs)
    context = np.random.default_rng(1).standard_normal((2, 7, 4)).astype(np.float32)
    real = np.arange(7) < np.array([[7], [3]])
    run, extend = program(block), program(block, "extend")
    want = run(X, Tokens(context=context, context_mask=real))
    short = run(X[1:], Tokens(context=context[1:, :3]))
    assert relative(want[1:], short) < 1e-5
    dirty = np.where(real[..., None], context, np.nan)
    y, state = extend(X[:, :2], block.init_state(2, 5, context=dirty, context_mask=real))
    rest, _ = extend(X[:, 2:], state)
    assert relative(np.concatenate([y, rest], 1), want) < 1e-5
    with pytest.raises(ValueError, match="no branch of the block reads the context"):
        Block({"mixer": causal_attention()}, features=8, rngs=rngs)(X, Tokens(context=context))


@pytest.mark.parametrize("options", [{"rotary": 100.0}, {"window": 2}, {"relative": "alibi"}], ids=str)
def test_cross_attention_counts_the_tokens_that_it_reads(options: dict[str, Any]) -> None:
    cross = MultiHeadAttention(8, num_heads=2, context_features=4, rngs=nnx.Rngs(0), kernel_init=normal(1.0), **options)
    context = np.random.default_rng(1).standard_normal((2, 7, 4)).astype(np.float32)
    run, extend = program(cross), program(cross, "extend")
    want, state = run(X, Tokens(context=context)), cross.init_state(2, 5, context=context)
    # The second row's padding does not count.
    first, state = extend(X[:, :2], state, np.array([[True, True], [True, False]]))
    rest, _ = extend(np.stack([X[0, 2:4], X[1, 1:3]]), state)
    assert relative(np.concatenate([first[0], rest[0]]), want[0, :4]) < 1e-5
    assert relative(np.concatenate([first[1, :1], rest[1]]), want[1, :3]) < 1e-5


def test_branches_may_share_a_norm() -> None:
    branches = {"mixer": Doubling(), "channel": Branch(Doubling(), norm_of="mixer")}
    block = Block(branches, features=8, rngs=nnx.Rngs(0))
    block.mixer_norm.bias.set_value(jnp.ones(8))
    h = X + 2 * (normalized(X) + 1)
    np.testing.assert_allclose(block(X), h + 2 * (normalized(h) + 1), rtol=1e-4, atol=1e-4)
    assert block.channel_norm is None
    with pytest.raises(ValueError, match="'channel' shares the norm of 'other', and no branch before it has that norm"):
        Block({"channel": Branch(Doubling(), norm_of="other")}, features=8, rngs=nnx.Rngs(0))
