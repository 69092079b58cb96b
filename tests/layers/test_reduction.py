"""Reductions leave the right tokens, and say what is known of those: mask, positions, where on the grid they lay,
prefix.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from layers import Block, Place, Stack, Tokens, create_mixer, create_reduction, list_reductions, making
from layers.initializers import normal
from tests.layers.mixer_cases import relative
from tests.tiers import tiered

FEATURES, PREFIX, GRID = 4, 2, (3, 4)
LENGTH = PREFIX + GRID[0] * GRID[1]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, LENGTH, FEATURES)).astype(np.float32)


def make(spec: Any, **options: Any) -> Any:
    options = {"extent": GRID, "prefix": PREFIX, **options}
    return making.make(lambda rngs: create_reduction(spec, FEATURES, rngs=rngs, **options), nnx.Rngs(0))


def reduced(reduction: Any, x: Any, tokens: Tokens) -> tuple[np.ndarray, Tokens]:
    """What is left, and what is known of it, by one program."""
    return jax.device_get(jax.jit(lambda x, tokens: reduction(x, tokens))(x, tokens))


@pytest.mark.parametrize("name", list_reductions())
def test_tokens_left_are_as_many_as_said(name: str) -> None:
    reduction = make(name)
    y, known = reduced(reduction, X, Tokens(grid=GRID))
    left = reduction.extent_after(GRID)
    count = left if isinstance(left, int) else left[0] * left[1]
    assert y.shape == (2, PREFIX + count, FEATURES)
    assert known.grid == (None if isinstance(left, int) else left)
    assert known.prefix(y.shape[1]) == PREFIX
    places = known.grid_places(y.shape[1])
    assert places.shape[1:] == (PREFIX + count, 2)
    assert not np.any(places[:, :PREFIX])
    if name != "residual_reduction":  # whose prefix passes a linear layer
        np.testing.assert_array_equal(y[:, :PREFIX], X[:, :PREFIX])


REAL = 8  # tokens of the grid: its first two rows


@pytest.mark.parametrize("name", list_reductions())
def test_padding_has_no_part_in_what_is_left(name: str) -> None:
    """Tokens left of a grid whose last row is padding are those of the grid without it; their table alone is another
    one's.
    """
    reduction = make(name)
    mask = jnp.broadcast_to(jnp.arange(LENGTH) < PREFIX + REAL, (2, LENGTH))
    y, known = reduced(reduction, jnp.where(mask[..., None], X, jnp.nan), Tokens(mask=mask, grid=GRID))
    real = np.asarray(known.mask)
    assert real.shape == y.shape[:2]
    assert np.isfinite(np.asarray(y)[real]).all()
    # Half of all tokens are left, whether real or not: where enough are, none is padding.
    expected = {"max_pool": [True] * 4 + [False], "residual_reduction": [True, True, False, False], "top_k": [True] * 6}
    assert real.tolist() == [[True] * PREFIX + expected[name]] * 2
    if name != "top_k":
        alone, _ = reduced(reduction, X[:, : PREFIX + REAL], Tokens(grid=(2, 4)))
        table, other = (
            np.asarray(reduction.position(grid)).reshape(-1, FEATURES)
            for grid in ({"max_pool": [(1, 5), (1, 3)]}.get(name, [(2, 2), (1, 2)]))
        )
        count = len(other)
        np.testing.assert_allclose(y[:, PREFIX : PREFIX + count] - table[:count], alone[:, PREFIX:] - other, atol=1e-5)


def test_maxima_are_over_real_tokens() -> None:
    reduction = make({"name": "max_pool", "position": False}, prefix=0)
    x = X[:, :9]
    real = np.arange(9) < np.array([[9], [5]])
    y, known = reduced(reduction, x, Tokens(mask=jnp.asarray(real), positions=jnp.arange(10, 19)[None]))
    assert np.asarray(known.positions).tolist() == [[11, 13, 15, 17]]
    assert np.asarray(known.mask).tolist() == [[True] * 4, [True, True, True, False]]
    for row, count in enumerate((4, 3)):
        for i in range(count):
            window = x[row, 2 * i : 2 * i + 3][real[row, 2 * i : 2 * i + 3]]
            np.testing.assert_array_equal(y[row, i], window.max(0))


def test_the_tokens_farthest_along_the_direction_are_left() -> None:
    reduction = make({"name": "top_k", "keep": 0.4})
    p = np.asarray(reduction.direction[...])
    score = X[:, PREFIX:] @ p / np.linalg.norm(p)
    index = np.sort(np.argsort(-score, axis=1)[:, :5], axis=1)
    roles = jnp.arange(LENGTH)[None]
    y, known = reduced(reduction, X, Tokens(roles=roles, grid=GRID))
    for row in range(2):
        expected = X[row, PREFIX:][index[row]] / (1 + np.exp(-score[row][index[row]]))[:, None]
        np.testing.assert_allclose(y[row, PREFIX:], expected, atol=1e-6)
        assert np.asarray(known.roles[row]).tolist() == [0, 1, *(index[row] + PREFIX)]
        cells = np.stack(np.divmod(index[row], GRID[1]), -1)
        np.testing.assert_array_equal(known.grid_places(len(y[row]))[row, PREFIX:], cells)
        stretched = known.grid_places(len(y[row]), (6, 2))[row, PREFIX:]
        np.testing.assert_allclose(stretched, cells * [6 / 3, 2 / 4], atol=1e-6)


def test_residual_reduction_is_a_convolution_beside_means() -> None:
    reduction = make("residual_reduction")
    x = jnp.asarray(X)
    y, known = reduced(reduction, x, Tokens(grid=GRID))
    maps, normed = (a[:, PREFIX:].reshape(2, *GRID, FEATURES) for a in (x, reduction.norm(x)))
    kernel = reduction.conv.kernel[...]
    padded = np.pad(normed, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, j in ((0, 0), (1, 1)):
        window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        mean = maps[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
        expected = np.einsum("bhwc,hwcd->bd", window, kernel) + mean + reduction.position.table[i, j]
        np.testing.assert_allclose(y[:, PREFIX + 2 * i + j], expected, atol=1e-5)
    assert known.grid == (2, 2)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown reduction 'max_pol': did you mean 'max_pool'"):
        make("max_pol")
    with pytest.raises(ValueError, match="tokens that form no grid can't be convolved"):
        make("residual_reduction", extent=5)
    with pytest.raises(ValueError, match="2 tokens can't be pooled over windows of 3"):
        make("max_pool", extent=2)
    with pytest.raises(ValueError, match="MaxPoolReduction does not honor segment_ids"):
        make("max_pool")(X, Tokens(segment_ids=jnp.zeros((2, LENGTH), jnp.int32)))
    with pytest.raises(ValueError, match="MaxPoolReduction leaves no grid, and what follows takes grids only"):
        make("max_pool", prefix=0)(X[:, PREFIX:].reshape(2, *GRID, FEATURES))
    with pytest.raises(ValueError, match="no reduction can follow block 4 of a stack of 4"):
        _stack({4: make("max_pool")})


def _stack(reductions: dict[int, Any], **form: Any) -> Stack:
    place, options = Place(num_heads=1), {"name": "attention", "rotary": 100.0, "kernel_init": normal(1.0)}

    def build(rngs: nnx.Rngs) -> Stack:
        blocks = [
            Block({"mixer": create_mixer(options, FEATURES, place=place, rngs=rngs)}, features=FEATURES, rngs=rngs)
            for _ in range(4)
        ]
        return Stack(blocks, reductions=reductions, **form)

    return making.make(build, nnx.Rngs(0))


FORMS: list[dict[str, Any]] = [{}, {"scan": True}, {"scan": True, "remat": True}]


@pytest.mark.parametrize("form", tiered(FORMS, lambda form: len(form) == 1), ids="+".join)
def test_a_stack_splits_where_reductions_are(form: dict[str, Any]) -> None:
    """As blocks and reductions called one by one; rotary attention sees where the tokens left were."""
    reductions = {1: make({"name": "top_k", "keep": 0.5}), 2: make("max_pool", extent=6)}
    stack = _stack(reductions, **form)

    @jax.jit
    def run(x: jax.Array) -> Any:
        last, found, _ = stack.through(x, Tokens(grid=GRID), capture=(1, 3))
        return last, found

    @jax.jit
    def one_by_one(x: jax.Array) -> Any:
        known, outputs = Tokens(grid=GRID), []
        for i, block in enumerate(stack):
            x = block(x, known)
            x, known = reductions[i](x, known) if i in reductions else (x, known)
            outputs.append((x, known))
        # Blocks that count what is left anew.
        return outputs, stack[3](outputs[2][0], Tokens(grid=None))

    (y, tokens), found = run(X)
    expected, anew = one_by_one(X)
    assert y.shape == (2, PREFIX + 2, FEATURES)
    for (got, about), want in zip([(y, tokens), *found], (expected[3], expected[1], expected[3]), strict=True):
        assert relative(got, want[0]) < 1e-5
        np.testing.assert_array_equal(about.kept.cells, want[1].kept.cells)
        assert (about.kept.grid, about.kept.prefix) == (GRID, PREFIX)
    assert relative(anew, expected[3][0]) > 1e-4  # positions have a part in it
    with pytest.raises(ValueError, match="can't read in pieces"):
        stack.init_state(2, 8)


def test_a_backbone_knows_how_its_tokens_lie() -> None:
    """Maps where a grid is left, tokens and their cells where none is; mixers are made for the grid that they see."""
    seen: list[Any] = []

    def mixer(features: int, *, place: Place, rngs: nnx.Rngs) -> Any:
        seen.append(place.grid)
        return create_mixer("attention", features, place=place, rngs=rngs)

    options = {"features": 16, "num_heads": 2, "depth": 4, "num_classes": 3, "registers": 1, "image_size": 24}
    reductions = {0: "residual_reduction", "-2": {"name": "top_k", "keep": 0.5}}
    model: Any = zoo.create("vit_nano_patch4_32", mixer=mixer, reductions=reductions, **options)
    assert seen == [(6, 6), (3, 3), (3, 3), None]
    images = RNG.standard_normal((2, 24, 40, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda x: (model(x), model.features(x, range(4), prefix=True)), images)
    logits, (first, second, third, fourth) = jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert logits == (2, 3)
    assert first == second == ((2, 3, 5, 16), (2, 2, 16))
    assert third == fourth == (((2, 8, 16), (2, 8, 2)), (2, 2, 16))
    with pytest.raises(ValueError, match="puts the token among those that reductions take away"):
        zoo.create("vit_nano_patch4_32", class_position="middle", reductions={0: "max_pool"})
    with pytest.raises(ValueError, match="a mixer takes grids only, and a reduction leaves none"):
        zoo.create("vit_nano_patch4_32", mixer="focal_modulation", reductions={0: "max_pool"})
    grids: Any = zoo.create(
        "vit_nano_patch4_32", mixer="focal_modulation", reductions={0: "residual_reduction"}, **options
    )
    assert jax.eval_shape(lambda x: grids.features(x, [3])[0], images).shape == (2, 3, 5, 16)
