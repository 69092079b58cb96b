"""Attention, its rollout and the Jacobian of a mixer: right by definition, and drawn with their data and labels."""

from __future__ import annotations

import itertools
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
    with pytest.raises(ValueError, match="attention sinks need the same tokens in all layers"):
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


def test_the_tree_is_the_one_of_the_largest_sum() -> None:
    """Of all choices of parents that lead to the root, by trying them."""
    for seed in range(6):
        weights = np.random.default_rng(seed).random((2, 2, 5, 5)).astype(np.float32)
        (found,) = zoo.dependency_trees({"a": weights}).values()
        for example, parents in enumerate(found):
            sent = weights[example].sum(0)
            np.fill_diagonal(sent, 0)
            root = int(sent.sum(1).argmax())

            def total(chosen: tuple[int, ...], sent: np.ndarray = sent, root: int = root) -> float:
                if chosen[root] != root or any(p == i for i, p in enumerate(chosen) if i != root):
                    return -1.0
                above = np.asarray(chosen)
                for _ in range(3):
                    above = above[above]
                return float(sum(sent[p, i] for i, p in enumerate(chosen))) if (above == root).all() else -1.0

            best = max(itertools.product(range(5), repeat=5), key=total)
            assert tuple(parents) == best
    looped = np.zeros((1, 1, 4, 4))
    # 1 and 2 send to each other, 3 to 0: 5 + 0.5 is more than 4 + 1.
    looped[0, 0, [2, 1, 0, 0, 0], [1, 2, 3, 1, 2]] = [5, 4, 9, 1, 0.5]
    np.testing.assert_array_equal(zoo.dependency_trees({"a": looped})["a"], [[0, 2, 0, 0]])
    with pytest.raises(ValueError, match="a has 4 queries and 5 keys"):
        zoo.dependency_trees({"a": np.ones((1, 1, 4, 5))})


def test_trees_over_an_image() -> None:
    trees = {"a": np.array([[0, 0, 0, 0], [3, 0, 3, 3]]), "b": np.array([[0, 0, 0, 0], [1, 1, 1, 2]])}
    figure = zoo.draw_trees(IMAGES[1], trees, (2, 2), example=1)
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    centers = {0: (4, 4), 1: (12, 4), 2: (4, 12), 3: (12, 12)}
    for axes, parents in zip(figure.axes, ([3, 0, 3, 3], [1, 1, 1, 2]), strict=True):
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("column", "row")
        *edges, root = axes.get_lines()
        drawn = {tuple(map(tuple, np.asarray(edge.get_xydata()).tolist())) for edge in edges}
        assert drawn == {(centers[token], centers[p]) for token, p in enumerate(parents) if token != p}
        assert root.get_label() == "root"
        (at,) = np.asarray(root.get_xydata()).tolist()
        assert tuple(at) == centers[next(token for token, p in enumerate(parents) if token == p)]
    with pytest.raises(ValueError, match="a has 4 tokens, not the 6 of a grid of 3 x 2"):
        zoo.draw_trees(IMAGES[1], trees, (3, 2))
    with pytest.raises(ValueError, match="no trees"):
        zoo.draw_trees(IMAGES[1], {}, (2, 2))


def test_a_dependency_model_has_a_tree() -> None:
    model = zoo.create("dependencyvit_nano_patch4_32", image_size=16, depth=2, features=16, num_heads=2)
    maps = zoo.attention_maps(model, IMAGES)
    trees = zoo.dependency_trees(maps)
    assert list(trees) == ["blocks.0.mixer", "blocks.1.mixer"]
    for path, parents in trees.items():
        sent = maps[path].sum(1)
        for example in range(2):
            np.fill_diagonal(sent[example], 0)
            (root,) = np.flatnonzero(parents[example] == np.arange(16))
            assert root == sent[example].sum(1).argmax()


def test_fields_of_view() -> None:
    """Half of the map and distances, written out; the picture shows the row of the token that asks."""
    model = zoo.create(
        "vit_nano_patch4_32", image_size=16, depth=2, features=16, num_heads=4, position=None,
        mixer={"name": "lookhere", "fields": ("halves",), "layer_slopes": (2.0, 1.0)},
    )  # fmt: skip
    views = zoo.fields_of_view(model, (3, 4))
    assert list(views) == ["blocks.0.mixer", "blocks.1.mixer"]
    places = np.stack(np.meshgrid(np.arange(3), np.arange(4), indexing="ij"), -1).reshape(-1, 2)
    down, across = np.moveaxis(places - places[:, None], -1, 0)
    for slope, found in zip((2.0, 1.0), views.values(), strict=True):
        for seen, weights in zip((down <= 0, down >= 0, across <= 0, across >= 0), found, strict=True):
            want = np.exp(-0.5 * slope * np.hypot(down, across)) * seen
            np.testing.assert_allclose(weights, want / want.sum(-1, keepdims=True), rtol=1e-5)
    figure = zoo.draw_fields_of_view(views["blocks.1.mixer"], (3, 4), 5, title="half")
    drawn = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in drawn] == ["half 0", "half 1", "half 2", "half 3"]
    for axes, weights in zip(drawn, views["blocks.1.mixer"], strict=True):
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("column", "row")
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), weights[5].reshape(3, 4))
        assert axes.get_lines()[0].get_xydata().tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="the grid has the tokens 0 to 11, and not 12"):
        zoo.draw_fields_of_view(views["blocks.1.mixer"], (3, 4), 12)
    with pytest.raises(ValueError, match="no mixer of the model has fields of view"):
        zoo.fields_of_view(Mean(), (3, 4))


def test_connections_over_an_image() -> None:
    options = {"name": "predicted_sparse_attention", "connections": "nearest", "keep": 5 / 17}
    model = zoo.create("vit_nano_patch4_32", image_size=16, depth=1, features=16, num_heads=2, mixer=options)
    with pytest.raises(ValueError, match=r"no regions|can capture"):
        zoo.capture(model, IMAGES, "routes")
    found = zoo.capture(model, IMAGES, "connections")
    assert list(found) == ["blocks.0.mixer.connections"]
    figure = zoo.draw_connections(IMAGES[1], found, (4, 4), 5, example=1)
    axes = figure.axes[0]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("blocks.0.mixer", "column", "row")
    share = np.asarray(axes.get_images()[1].get_array())
    want = np.zeros((4, 4))
    want[[1, 0, 1, 1], [1, 1, 0, 2]] = 1  # the class token is the fifth
    np.testing.assert_array_equal(share, want)
    (frame,) = axes.get_lines()
    assert (min(frame.get_xdata()), max(frame.get_xdata())) == (4, 8)
    heads = np.zeros((1, 2, 4, 4), bool)
    heads[0, 0, 3], heads[0, 1, 3, 1] = True, True
    figure = zoo.draw_connections(IMAGES[1], {"a": heads}, (2, 2))
    np.testing.assert_array_equal(figure.axes[0].get_images()[1].get_array(), [[0.5, 1], [0.5, 0.5]])
    assert figure.axes[1].get_ylabel() == "share of heads"
    with pytest.raises(ValueError, match="no connections"):
        zoo.draw_connections(IMAGES[1], {}, (2, 2))


class Blur(nnx.Module):
    """A map of means over 3 x 3 pixels, every second one, of the first channel less the second."""

    def features(self, images: jnp.ndarray) -> list[jnp.ndarray]:
        x = images @ jnp.asarray([[1.0], [-1.0], [0.0]])
        window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
        return [images, jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, "SAME") / 9]


def test_receptive_fields() -> None:
    field = zoo.receptive_field(Blur(), IMAGES)
    want = np.zeros((16, 16))
    want[8:11, 8:11] = 2 / 9  # of an even side nothing is padded before it
    np.testing.assert_allclose(field, want, rtol=1e-6)
    assert zoo.receptive_field(Blur(), IMAGES, 0).sum() == 3
    figure = zoo.draw_receptive_fields({"blur": field, "b": field})
    drawn = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in drawn] == ["blur", "b"]
    assert (drawn[0].get_xlabel(), drawn[0].get_ylabel()) == ("column", "row")
    np.testing.assert_allclose(drawn[0].get_images()[0].get_array(), want * 4.5, rtol=1e-6)
    with pytest.raises(ValueError, match="no receptive fields"):
        zoo.draw_receptive_fields({})
    with pytest.raises(ValueError, match="Mean has no maps"):
        zoo.receptive_field(Mean(), IMAGES)


@pytest.mark.full
@pytest.mark.parametrize("name", ["overlock_nano", "vit_nano_patch4_32"])
def test_receptive_fields_of_models(name: str) -> None:
    """Finite differences of a pixel say the same of the middle."""
    model = zoo.create(name)
    images = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    field = zoo.receptive_field(model, images)
    assert field.shape == (32, 32)
    graphdef, state = nnx.split(model)

    @jax.jit
    def middle(images: jax.Array) -> jax.Array:
        copy: Any = nnx.merge(graphdef, state)
        copy.eval()
        grid = copy.features(images)[-1]
        return grid[:, grid.shape[1] // 2, grid.shape[2] // 2].sum(-1)

    steps = np.zeros((6, 32, 32, 3), np.float32)
    for i, channel in enumerate((0, 1, 2)):
        steps[2 * i : 2 * i + 2, 17, 15, channel] = 0.01, -0.01
    around = np.asarray(middle(images + steps)).reshape(3, 2)
    assert np.abs((around[:, 0] - around[:, 1]) / 0.02).sum() == pytest.approx(float(field[17, 15]), rel=2e-2)
