"""Neighborhood attention by kernels: orders of tokens by tiles, masks of indices in them and lists of blocks against
each axis' keys, and the kernels with blocks so small that micro grids have many of them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch, hopper, neighborhood_attention
from pallas_kernels.attention import lists
from pallas_kernels.attention import xla as of_attention
from pallas_kernels.attention.gpu import mosaic as gpu
from pallas_kernels.neighborhood_attention import grid_of, mosaic_tpu, speedup, xla
from pallas_kernels.neighborhood_attention.geometry import Axis
from pallas_kernels.neighborhood_attention.tiled import Neighborhood, Order, neighborhood
from tests.pallas_kernels import test_attention_gpu
from tests.pallas_kernels.test_kernels_on_mesh import on
from tests.pallas_kernels.test_ops import FLOAT64, arrays_of, compare, evaluate, find
from tests.tiers import tiered

GRIDS: dict[str, dict[str, Any]] = {
    "line": {"shape": (61,), "kernel_size": 9},
    "line_dilated": {"shape": (45,), "kernel_size": 5, "stride": 3, "dilation": 4, "causal": True},
    "map": {"shape": (13, 22), "kernel_size": (4, 7), "stride": (2, 5), "border": "masked"},
    "map_windows": {"shape": (16, 16), "kernel_size": 8, "stride": 8},
    "map_dilated": {"shape": (11, 12), "kernel_size": (3, 2), "dilation": (2, 3), "causal": (True, False)},
    "volume": {"shape": (5, 6, 7), "kernel_size": (3, 2, 4), "stride": (1, 2, 1), "causal": (False, False, True)},
}


def tokens(order: Order) -> np.ndarray:
    """The index in the grid of each token of an order, -1 for those that fill tiles."""
    at: Any = 0
    real: Any = True
    for axis, (residue, own) in zip(order.grid, order.places(np.arange(order.length))):
        real = real & (own >= 0) & (own < axis.count(np.asarray(residue)))
        at = at * axis.length + own * axis.dilation + residue
    return np.where(real, at, -1)


def allowed(grid: tuple[Axis, ...]) -> np.ndarray:
    """bool (tokens, tokens): which keys a query attends to, in row-major order."""
    whole = np.ones((1, 1), bool)
    for axis in grid:
        one = (axis.keys[:, :, None] == np.arange(axis.length)).any(1)
        whole = np.kron(whole, one)
    return whole


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("block", [(8, 32), (32, 16)], ids=str)
def test_masks_and_blocks_are_those_of_the_axes(name: str, block: tuple[int, int]) -> None:
    options = dict(GRIDS[name])
    grid = grid_of(options.pop("shape"), **options)
    mask = neighborhood(grid, (block,))
    q, k = tokens(mask.queries), tokens(mask.keys)
    truth = allowed(grid)
    for at in (q, k):  # every token once
        np.testing.assert_array_equal(np.sort(at[at >= 0]), np.arange(len(truth)))
    want = truth[q][:, k] & (q >= 0)[:, None] & (k >= 0)
    index = [np.arange(len(x), dtype=np.int32) for x in (q, k)]
    np.testing.assert_array_equal(mask(index[0][:, None], index[1][None])[q >= 0], want[q >= 0])
    # Boxes within tiles, tiles, and several tiles to a block; what is cut by the end of the order is not whole.
    for rows, columns in (block, (8, 16), (3 * block[0], 2 * block[1])):
        found = mask.cover(*want.shape, rows, columns)
        assert found is not None
        pads = [(0, -n % size) for n, size in zip(want.shape, (rows, columns))]
        pairs = np.pad(want, pads).reshape(-(-len(q) // rows), rows, -1, columns)
        is_query = np.pad(q >= 0, pads[0]).reshape(-1, rows)
        np.testing.assert_array_equal(found[0], pairs.any((1, 3)))
        every = (pairs | ~is_query[:, :, None, None]).all((1, 3)) & is_query.any(1)[:, None]
        assert not (found[1] & ~every).any()
        if rows <= mask.queries.tile and columns <= mask.keys.tile:
            np.testing.assert_array_equal(found[1], every)


def test_masks_are_data() -> None:
    def made(window: int) -> Neighborhood:
        return neighborhood.__wrapped__(grid_of((9, 12), window), ((16, 16),))

    assert made(5) == made(5)
    assert hash(made(5)) == hash(made(5))
    assert made(5) != made(3)


def test_tiles_of_keys_start_where_windows_do() -> None:
    """7 tokens around each of a tile of 8 reach over 14: two tiles of keys that start 3 before the grid, and three (at
    the borders two) of those that start with it, which are those of the simulator.
    """
    axis = Axis(64, 7)
    assert axis.visits(8, 8, 3) == 8 * 2
    assert axis.visits(8, 8) == 8 * 3 - 2
    assert speedup((64,), (7,), (1,), (1,), (8,), (8,)) == pytest.approx(64 / 22)
    mask = neighborhood(grid_of((56, 56), 7), ((128, 128),))
    assert mask.keys.leads == (3, 3)
    assert mask.visits == 7 * 2 * 4 * 2 - 2 * 7  # the last column's second tiles would start behind the map


def test_whole_blocks() -> None:
    """Of 30 x 48 x 80 tokens, as many as a video model has, with windows of 18 x 24 x 24 and strides of 16 x 8 x 8: no
    block is cut, and nothing is computed that is not attended to.
    """
    grid = (30, 48, 80), (18, 24, 24), (16, 8, 8)
    mask = neighborhood(grid_of(*grid), ((128, 128),))
    some, every = mask.cover(mask.queries.length, mask.keys.length, 128, 128) or (None, None)
    np.testing.assert_array_equal(some, every)
    tokens = 30 * 48 * 80
    assert mask.visits * 128 * 128 == tokens * 18 * 24 * 24
    assert speedup(*grid, (1, 1, 1), mask.queries.sides, mask.keys.sides) == pytest.approx(tokens / (18 * 24 * 24))


SMALL = ("map_windows", "map_dilated", "map_causal", "volume_padding")


@pytest.mark.parametrize("name", tiered(SMALL, lambda name: name == "map_causal"))
def test_many_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosaic_tpu, "SIZES", (16,))
    op, case = find("neighborhood_attention", name)
    compare(op, case, evaluate(op, "mosaic_tpu", case, np.float32, traced="small blocks"), 1.0)


@pytest.mark.parametrize("name", tiered(SMALL[1:], lambda name: name == "map_causal"))
def test_xla_without_copies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide windows: lists of small blocks in place of boxes."""
    monkeypatch.setattr(xla, "COPIES", 0)
    for module, sizes in ((lists, {"CHUNK": 16, "BLOCK": 8}), (of_attention, {"CHUNK": 16, "DIRECT_LENGTH": 16})):
        for which, size in sizes.items():
            monkeypatch.setattr(module, which, size)
    op, case = find("neighborhood_attention", name)
    results = evaluate(op, "xla", case, np.float64, traced="lists")
    compare(op, case, results, FLOAT64)


def test_memory_is_linear_for_wide_windows() -> None:
    """The boxes of 23 x 55 x 55 keys around 4 x 4 x 4 queries would hold each key a thousand times."""
    x = jax.ShapeDtypeStruct((1, 20, 64, 64, 1, 8), jnp.float32)

    def run(x: jax.Array) -> jax.Array:
        return neighborhood_attention(x, x, x, kernel_size=(20, 52, 52))

    equations: Any = jax.make_jaxpr(run)(x).eqns
    assert max(out.aval.size for equation in equations for out in equation.outvars) <= 8 * x.size


@pytest.mark.full
@test_attention_gpu.needs_interpreter
def test_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """As attention's kernels are tested: rounded to float16, against the reference in float64."""
    monkeypatch.setattr(gpu, "FEWEST_QUERIES", 1)
    _, case = find("neighborhood_attention", "volume_padding")
    rounded = {n: x.astype(np.float16) if x.dtype == np.float64 else x for n, x in arrays_of(case).items()}

    def run(implementation: str, dtype: Any) -> Any:
        arrays = {n: jnp.asarray(x, dtype if x.dtype == np.float16 else x.dtype) for n, x in rounded.items()}
        return test_attention_gpu.evaluate(implementation, case.options, arrays, neighborhood_attention)

    with hopper.interpreted(detect_races=True):
        got = run("mosaic_gpu", jnp.float16)
    with jax.enable_x64(True):
        want = run("reference", jnp.float64)
    for key, exact in want.items():
        assert np.max(np.abs(got[key] - exact)) <= test_attention_gpu.TOLERANCE * np.max(np.abs(exact)), key


@pytest.mark.parametrize(
    ("platform", "change", "reason"),
    [
        ("tpu", {"bias": (2, 5, 5)}, "bias is given, a table of offsets"),
        ("gpu", {"bias": (2, 5, 5)}, "bias is given, a table of offsets"),
        ("gpu", {"dtype": jnp.float32}, "it takes float16 or bfloat16"),
        ("tpu", {"grid": (2**18,), "window": 2**17}, "lists of the blocks that it visits, of 196608 entries"),
    ],
)
def test_refusals(platform: Any, change: dict[str, Any], reason: str) -> None:
    given = {"grid": (16, 16), "window": 3, "dtype": jnp.bfloat16, "bias": None} | change
    x = jax.ShapeDtypeStruct((1, *given["grid"], 2, 32), given["dtype"])
    bias = None if given["bias"] is None else jax.ShapeDtypeStruct(given["bias"], given["dtype"])

    def call(x: jax.Array, bias: jax.Array | None) -> jax.Array:
        named = f"mosaic_{platform}"
        return neighborhood_attention(x, x, x, kernel_size=given["window"], bias=bias, implementation=named)

    with dispatch.platform(platform), pytest.raises(dispatch.Refused, match=reason):
        jax.eval_shape(call, x, bias)


def test_kernels_are_the_default() -> None:
    x = jax.ShapeDtypeStruct((1, 16, 16, 2, 32), jnp.bfloat16)
    for platform in ("tpu", "gpu"):
        with dispatch.platform(platform), dispatch.recording() as choices:
            jax.eval_shape(lambda x: neighborhood_attention(x, x, x, kernel_size=5), x)
        assert [choice.implementation for choice in choices] == [f"mosaic_{platform}"]


def test_devices_get_their_rows_and_heads() -> None:
    for grid in ((24,), (6, 5), (3, 4, 5)):
        x = jax.ShapeDtypeStruct((4, *grid, 2, 32), jnp.bfloat16)
        with on({"data": 2, "tensor": 2}), dispatch.platform("tpu"), dispatch.recording() as choices:
            out = jax.eval_shape(lambda x: neighborhood_attention(x, x, x, kernel_size=3), x)
        assert [choice.implementation for choice in choices] == ["mosaic_tpu"]
        assert out.shape == x.shape
