"""Attention, its rollout and the Jacobian of a mixer: right by definition, and drawn with their data and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
import zoo
from layers import Place
from layers.attention.projected import ProjectedAttention
from layers.module import Diagnostic, collecting
from layers.tokens import Tokens

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 16, 16, 3)).astype(np.float32)
WEIGHING = {name: {} for name in layers.list_mixers() if getattr(layers.mixer_class(name), "weighs_values", False)}
# Their defaults are for longer sequences.
SHORT = {
    "bigbird": {"block": 1, "random": 1},
    "dilated_attention": {"segments": (4, 12), "rates": (1, 2), "inner_norm": True},
}


def sown_weights(mixer: layers.Mixer, x: jax.Array) -> jax.Array:
    with collecting(Diagnostic, name="attention") as sown:
        mixer(x)
    (weights,) = sown.named(mixer).values()
    return weights


@pytest.mark.parametrize("name", WEIGHING)
def test_weights_times_values_are_what_a_core_gives(name: str) -> None:
    cls = layers.mixer_class(name)
    assert issubclass(cls, ProjectedAttention)
    options = {**({"causal": True} if cls.supports_causal else {}), **SHORT.get(name, {})}
    mixer = layers.create_mixer(name, 16, place=Place(num_heads=2), **options, rngs=nnx.Rngs(0))
    grid = None if "sequence" in cls.layouts else (3, 4)
    x = jnp.asarray(RNG.standard_normal((2, 12, 16)), jnp.float32)
    graphdef, state = nnx.split(mixer)

    @jax.jit
    def run(state: nnx.State) -> tuple[jax.Array, ...]:
        mixer = nnx.merge(graphdef, state)
        weights = sown_weights(mixer, x if grid is None else x.reshape(2, *grid, 16))
        q, (k, v) = mixer.queries(x, None), mixer.keys_and_values(x, None)
        want = mixer.core(q, k, v, x, Tokens(grid=grid)).reshape(2, 12, 2, 8)
        return weights, jnp.einsum("bhij,bjhd->bihd", weights, v), want

    weights, summed, want = run(state)
    assert weights.shape == (2, 2, 12, 12)
    np.testing.assert_allclose(summed, want, rtol=1e-4, atol=1e-5)
    if cls.supports_causal:
        assert np.all(np.triu(np.asarray(weights)[0, 0], 1) == 0)


def test_weights_beside_a_convolution() -> None:
    """Of in-line and Manhattan attention: with the convolution at zero they give all of the output."""
    x = jnp.asarray(RNG.standard_normal((2, 3, 4, 16)), jnp.float32)
    inline = layers.create_mixer("inline", 16, place=Place(num_heads=2), residual=0, rngs=nnx.Rngs(0))
    manhattan = layers.create_mixer("manhattan", 16, place=Place(num_heads=2), rngs=nnx.Rngs(0))
    manhattan.enhancement.kernel[...] *= 0
    for mixer in (inline, manhattan):
        graphdef, state = nnx.split(mixer)

        @jax.jit
        def run(state: nnx.State, graphdef: Any = graphdef) -> tuple[jax.Array, ...]:
            mixer = nnx.merge(graphdef, state)
            weights = sown_weights(mixer, x)
            _, v = mixer.key_value_heads(x.reshape(2, 12, 16))
            return weights, mixer.finish(jnp.einsum("bhij,bjhd->bihd", weights, v)).reshape(x.shape), mixer(x)

        weights, want, found = run(state)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_rows_and_columns_of_manhattan_attention_are_maps_apart() -> None:
    mixer = layers.create_mixer("manhattan", 16, place=Place(num_heads=2), decomposed=True, rngs=nnx.Rngs(0))
    maps = zoo.attention_maps(mixer, RNG.standard_normal((2, 3, 4, 16)).astype(np.float32))
    assert [weights.shape for weights in maps.values()] == [(6, 2, 4, 4), (8, 2, 3, 3)]


def test_weights_of_either_sign_are_drawn_around_zero() -> None:
    weights = np.array([[[[1.5, -0.5], [0.2, 0.8]]]], np.float32)
    (image,) = zoo.draw_maps({"mixer": weights}).axes[0].get_images()
    assert image.get_clim() == (-1.5, 1.5)
    (image,) = zoo.draw_maps({"mixer": np.abs(weights)}).axes[0].get_images()
    assert image.get_clim() == (0, 1.5)


def test_routes_over_the_image() -> None:
    routes = {"a.routes": np.array([[[0, 3], [1, 2], [2, 0], [3, 1]]] * 2), "b.routes": np.array([[[3]] * 4] * 2)}
    figure = zoo.draw_routes(IMAGES[1], routes, 1, example=1)
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert {(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes} == {("column", "row")}
    for axes, shown in zip(figure.axes, ([1, 2], [3]), strict=True):
        image, hidden = axes.get_images()
        assert image.get_array().shape == (16, 16, 3)
        assert np.flatnonzero(np.asarray(hidden.get_array()) == 0).tolist() == shown
        frames = axes.get_lines()
        assert [frame.get_label() for frame in frames] == ["attended to"] * len(shown) + ["asks"]
        frame = frames[-1]
        assert (min(frame.get_xdata()), max(frame.get_xdata())) == (8, 16)
        assert (min(frame.get_ydata()), max(frame.get_ydata())) == (0, 8)
    with pytest.raises(ValueError, match=r"a.routes has the regions 0 to 3, and not 4"):
        zoo.draw_routes(IMAGES[1], routes, 4)
    with pytest.raises(ValueError, match="no routes"):
        zoo.draw_routes(IMAGES[1], {})


def drawn_cells(axes: Any) -> list[list[int]]:
    """The positions that each row of a picture of clusters shows."""
    (image,) = axes.get_images()
    return [np.flatnonzero(~row).tolist() for row in np.ma.getmaskarray(image.get_array())]


def test_clusters_of_a_sequence() -> None:
    nearest = np.array([[[0, 1, 0, 1, 2]], [[2, 2, 0, 0, 0]]])
    queries, keys = np.array([[[[0, 2], [1, 5]]]]), np.array([[[[0, 3], [1, 4]]]])
    balanced = {"a.members": (queries, queries), "b.members": (queries, keys)}
    figure = zoo.draw_clusters({"c.members": nearest}, "horse", example=1)
    (axes,) = figure.axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("c", "token", "cluster")
    assert [label.get_text() for label in axes.get_xticklabels()] == list("horse")
    assert drawn_cells(axes) == [[2, 3, 4], [], [0, 1]]
    figure = zoo.draw_clusters(balanced, 5)
    assert [axes.get_title() for axes in figure.axes] == ["a", "b, queries", "b, keys"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"position"}
    assert [drawn_cells(axes) for axes in figure.axes] == [[[0, 2], [1]], [[0, 2], [1]], [[0, 3], [1, 4]]]
    with pytest.raises(ValueError, match="no clusters"):
        zoo.draw_clusters({}, 5)


def test_sinks_are_tokens_that_heads_look_at_whatever_is_asked() -> None:
    length = 6
    even = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]
    first = np.zeros((length, length))
    first[:, 0] = 1
    third = np.eye(length)
    third[2:] = np.eye(length)[2]
    maps = {"a": np.stack([even, first])[None], "b": np.stack([-3 * first, third])[None]}
    # The even head's importance of token k is (1/(k+1) + ... + 1/6) / (6 - k): 0.41, 0.29, 0.24, ...
    for threshold, expected in ((0.25, [3, 1, 1]), (0.3, [3, 0, 1]), (0.45, [2, 0, 1])):
        found = zoo.attention_sinks(maps, threshold=threshold)
        np.testing.assert_allclose(found, np.array([*expected, 0, 0, 0]) / 4, atol=1e-6)
    with pytest.raises(ValueError, match="queries of a see later keys"):
        zoo.attention_sinks({"a": np.full((1, 1, 4, 4), 0.25)})
    with pytest.raises(ValueError, match="sinks are those of tokens that all layers share"):
        zoo.attention_sinks({"a": np.ones((1, 2, 4, 4)), "b": np.ones((1, 2, 2, 2))})
    model = zoo.create("transformer_nano", depth=1, features=16, num_heads=2)
    assert zoo.attention_sinks(zoo.attention_maps(model, np.zeros((1, 5), np.int32))).shape == (5,)


def test_maps_and_rollout() -> None:
    model = zoo.create("vit_nano_patch4_32", depth=2, features=16, num_heads=2, image_size=16)
    maps = zoo.attention_maps(model, IMAGES)
    assert list(maps) == ["blocks.0.mixer", "blocks.1.mixer"]
    flow = zoo.attention_rollout(maps)
    first, second = (0.5 * np.eye(17) + 0.5 * weights[1].mean(0) for weights in maps.values())
    np.testing.assert_allclose(flow[1], second @ first, rtol=1e-5)
    np.testing.assert_allclose(flow.sum(-1), 1, rtol=1e-5)
    figure = zoo.draw_maps(maps, example=1)
    drawn = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in drawn] == list(maps)
    assert {(axes.get_xlabel(), axes.get_ylabel()) for axes in drawn} == {("key", "query")}
    for axes, weights in zip(drawn, maps.values(), strict=True):
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), weights[1].mean(0))
    over = zoo.draw_over_image(IMAGES[1], flow[1, 0], (4, 4), title="class token")
    image, share = over.axes[1].get_images()
    assert image.get_array().shape == (16, 16, 3)
    np.testing.assert_array_equal(share.get_array(), flow[1, 0, 1:].reshape(4, 4))
    assert over.axes[1].get_title() == "class token"
    with pytest.raises(ValueError, match="fewer than the 5 x 4 patches"):
        zoo.draw_over_image(IMAGES[1], flow[1, 0], (5, 4))


class Mean(nnx.Module):
    """y_i = (mean of x up to i) W."""

    def __init__(self) -> None:
        self.kernel = nnx.Param(jnp.asarray(RNG.standard_normal((4, 4)), jnp.float32))

    def __call__(self, x: jnp.ndarray) -> jnp.ndarray:
        return jnp.cumsum(x, 1) / jnp.arange(1, x.shape[1] + 1)[:, None] @ self.kernel[...]


def test_a_linear_mixer_is_its_matrix(tmp_path: Path) -> None:
    mixer, x = Mean(), RNG.standard_normal((1, 5, 4)).astype(np.float32)
    found = zoo.materialize(mixer, x)
    want = np.tril(np.ones((5, 5))) / np.arange(1, 6)[:, None] * np.linalg.norm(mixer.kernel[...])
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    figure = zoo.draw_matrix(found, "mean")
    (image,) = figure.axes[0].get_images()
    np.testing.assert_array_equal(image.get_array(), found)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("input token", "output token")
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="x is one example of tokens"):
        zoo.materialize(mixer, x[0])


def test_what_has_no_weights_says_what_can_be_drawn() -> None:
    model = zoo.create("s4d_nano", depth=1, features=16)
    with pytest.raises(
        ValueError, match=r"no mixer of the model has attention weights\..* zoo.materialize\(mixer, x\)"
    ):
        zoo.attention_maps(model, np.zeros((1, 4), np.int32))
    mixer = layers.create_mixer("routing", 16, place=Place(num_heads=2), clusters=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r'zoo.capture\(model, x, "members"\) gives .* zoo.draw_clusters draws'):
        zoo.attention_maps(mixer, np.ones((1, 6, 16), np.float32))
    with pytest.raises(ValueError, match="rollout multiplies layers of the same tokens"):
        zoo.attention_rollout({"a": np.ones((1, 2, 4, 4)), "b": np.ones((1, 2, 2, 2))})
