"""Hopper's attention kernels, interpreted with their copies and barriers: outputs and all gradients against the
reference, and no races.

The truth is the reference in float64 on the inputs as the kernels get them, rounded to float16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import attention, dispatch, hopper
from pallas_kernels.attention.blocks import band_cover
from pallas_kernels.attention.gpu import mosaic, tiles
from pallas_kernels.dispatch import OPS

needs_interpreter = pytest.mark.skipif(
    hopper.interpreter_missing() is not None, reason=str(hopper.interpreter_missing())
)

# Between them: both loops over blocks, one and two warpgroups, lists from masks and from positions, every term of the
# logits.
CASES = (
    "padding_causal_grouped",
    "mask",
    "sigmoid_masked",
    "cache_chunk",
    "long_padding",
    "long_pattern",
    "score",
    "long_routed_score",
)
# Half a unit in the last place of float16 is 2^-11; weights, gradients of logits and results are rounded to it once
# each.
TOLERANCE = 4 * 2.0**-11


def evaluate(
    implementation: str, options: dict[str, Any], arrays: dict[str, jax.Array], op: Callable[..., Any] = attention
) -> dict[str, np.ndarray]:
    """Outputs of an op, and gradients of the floating arrays under one random cotangent."""
    floating = {n: x for n, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    others = {n: x for n, x in arrays.items() if n not in floating}

    def call(floating: dict[str, jax.Array]) -> list[jax.Array]:
        return jax.tree.leaves(op(**floating, **others, **options, implementation=implementation))

    @jax.jit
    def run(floating: dict[str, jax.Array], cotangents: list[jax.Array]) -> Any:
        outputs, pull = jax.vjp(call, floating)
        return outputs, pull(cotangents)[0]

    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(call, floating)
    outputs, gradients = run(
        floating, [jnp.asarray(rng.standard_normal(s.shape).astype(np.float16), s.dtype) for s in shapes]
    )
    return {
        n: np.asarray(x, np.float64) for n, x in ({f"output {i}": x for i, x in enumerate(outputs)} | gradients).items()
    }


@pytest.mark.full
@needs_interpreter
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosaic, "FEWEST_QUERIES", 1)
    case = next(c for c in OPS["attention"].cases if c.name == name)
    made = {n: np.asarray(x) for n, x in case.arrays(np.random.default_rng(0)).items()}
    rounded = {n: x.astype(np.float16) if np.issubdtype(x.dtype, np.floating) else x for n, x in made.items()}
    with hopper.interpreted(detect_races=True):
        got = evaluate("mosaic_gpu", case.options, {n: jnp.asarray(x) for n, x in rounded.items()})
    with jax.enable_x64(True):
        want = evaluate(
            "reference",
            case.options,
            {n: jnp.asarray(x, jnp.float64 if x.dtype == np.float16 else x.dtype) for n, x in rounded.items()},
        )
    assert got.keys() == want.keys()
    for key, exact in want.items():
        finite = np.isfinite(exact)
        np.testing.assert_array_equal(got[key][~finite], exact[~finite], err_msg=key)
        error = np.max(np.abs(got[key][finite] - exact[finite]), initial=0.0)
        assert error <= TOLERANCE * np.max(np.abs(exact[finite])), key


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("reach", [(None, None), (None, 0), (70, 0), (100, 30), (None, 200)])
def test_blocks_by_arithmetic_are_those_of_the_cover(reach: tuple[int | None, int | None], transposed: bool) -> None:
    """Each visible block once, whole ones first, whatever the lengths."""
    for q_length, k_length in ((512, 512), (328, 1000), (1000, 328)):
        spec = tiles.Spec(1, 1, 1, q_length, k_length, k_length, reach, 1.0, False, 2, 128, 64, False)
        if transposed:
            left, right = reach
            cover = band_cover(right, left, k_length, q_length, spec.tile, spec.back_block)
        else:
            cover = band_cover(*reach, q_length, k_length, spec.tile, spec.block)
        for tile in range(spec.k_tiles if transposed else spec.q_tiles):
            found = tiles.visit(spec, None, 0, 0, jnp.int32(tile), transposed=transposed)
            visited = [int(found.block(jnp.int32(j))) for j in range(int(found.total))]
            assert sorted(visited) == np.flatnonzero(cover.some[tile]).tolist()
            assert visited[: int(found.whole)] == np.flatnonzero(cover.every[tile]).tolist()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": jnp.float32}, "float16 or bfloat16"),
        ({"head_dim": 160}, "head_dim 160 is above 128"),
        ({"length": 4}, "4 queries do not fill"),
        ({"bias": True, "length": 16384}, "GiB"),
    ],
)
def test_refusals(change: dict[str, Any], reason: str) -> None:
    options = {"dtype": jnp.bfloat16, "head_dim": 64, "length": 256, "bias": False} | change
    length = options["length"]
    q = jax.ShapeDtypeStruct((1, length, 2, options["head_dim"]), options["dtype"])
    bias = {"bias": jax.ShapeDtypeStruct((length, length), jnp.float32)} if options["bias"] else {}
    with dispatch.platform("gpu"), pytest.raises(dispatch.Refused, match=reason):
        jax.eval_shape(functools.partial(attention, implementation="mosaic_gpu"), q, q, q, **bias)


def test_bfloat16_on_a_gpu_is_served_by_the_kernels() -> None:
    q = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)
    with dispatch.platform("gpu"), dispatch.recording() as choices:
        jax.eval_shape(attention, q, q, q)
    assert choices[0].implementation == "mosaic_gpu"
