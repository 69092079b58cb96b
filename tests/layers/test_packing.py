"""Documents that share a row are as if each had a row of its own: outputs and gradients in float64 (in float32, and
piece by piece, in test_mixers.py); or the mixer says why not.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import Place, Tokens
from tests.layers.mixer_cases import CASES, FEATURES, GRID, VARIOUS, MixerCase, relative
from tests.layers.packing import TOLERANCE, Rows, by_one_program, close


def is_sequence(case: MixerCase) -> bool:
    return "sequence" in case.declared.layouts


KEEPS_APART = [case for case in CASES if "segment_ids" in case.declared.honors]
# Where the set that a token attends to is chosen among all tokens of the row, documents compete: see test_routing.py.
ALIKE = [case for case in CASES if case.packs]


@pytest.mark.full
@pytest.mark.parametrize("case", [case for case in ALIKE if case.quick and case.name in VARIOUS], ids=str)
def test_documents_of_a_row_are_as_if_alone_in_float64(case: MixerCase) -> None:
    mixer = case.make()
    rows = Rows.of(mixer.segment_multiple)
    x, weight = np.random.default_rng(0).standard_normal((2, 2, rows.length, FEATURES))
    with jax.enable_x64(True):
        graph, params, rest = nnx.split(mixer, nnx.Param, ...)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)

        def loss(
            params: Any, x: jax.Array, weight: jax.Array, mask: jax.Array, ids: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            y = nnx.merge(graph, params, rest, copy=True)(x, Tokens(mask, segment_ids=ids))
            return jnp.sum(jnp.where(mask[..., None], weight * y**2 + y, 0)), y

        run = functools.partial(jax.jit(jax.grad(loss, (0, 1), has_aux=True)), params)
        close(*by_one_program(run, rows, rows.length, x, weight), TOLERANCE[np.float64])


@pytest.mark.parametrize("case", [case for case in CASES if case not in KEEPS_APART], ids=str)
def test_who_can_not_keep_documents_apart_says_so(case: MixerCase) -> None:
    shape = (2, 12) if is_sequence(case) else (2, *GRID)
    tokens = Tokens(segment_ids=jnp.zeros(shape, jnp.int32))
    with pytest.raises(ValueError, match=r"^\w+ does not honor segment_ids: \w.{20,}"):
        case.declared(jnp.zeros((*shape, FEATURES)), tokens)


@pytest.mark.parametrize("case", [case for case in KEEPS_APART if not is_sequence(case)], ids=str)
def test_parts_of_a_grid_do_not_see_each_other(case: MixerCase) -> None:
    ids = jnp.broadcast_to(jnp.arange(GRID[0])[:, None] // 3, (2, *GRID))
    graph, state = nnx.split(case.make())
    mix = jax.jit(lambda x: nnx.merge(graph, state, copy=True)(x, Tokens(segment_ids=ids)))
    x = np.random.default_rng(0).standard_normal((2, *GRID, FEATURES)).astype(np.float32)
    changed = np.where(ids[..., None] == 1, x[::-1], x)
    same, moved = np.asarray(ids) != 1, np.asarray(ids) == 1
    y, other = np.asarray(mix(x)), np.asarray(mix(changed))
    assert relative(other[same], y[same]) < 1e-6
    assert relative(other[moved], y[moved]) > 1e-2


class LeansForward(nnx.Module):
    """A bias that knows where in its document a key is, not only how far away."""

    def __init__(self, num_heads: int, rngs: nnx.Rngs):
        del rngs
        self.heads = num_heads

    def __call__(self, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
        return (
            jnp.broadcast_to(
                0.3 * key_positions[:, None, None], (len(key_positions), self.heads, 1, key_positions.shape[1])
            )
            ** 2
        )


@pytest.mark.full
@pytest.mark.parametrize(
    "option", [{"bias": LeansForward}, {"score": lambda x, head, q, k: x + 0.1 * k * k}], ids=lambda option: min(option)
)
def test_biases_and_scores_see_positions_in_documents(option: dict[str, Any]) -> None:
    rows = Rows.of(1)
    place = Place(num_heads=2)
    mixer = layers.create_mixer("attention", FEATURES, causal=True, place=place, rngs=nnx.Rngs(0), **option)
    graph, state = nnx.split(mixer)
    mix = jax.jit(lambda x, mask, ids: nnx.merge(graph, state)(x, Tokens(mask, segment_ids=ids)))
    x = np.random.default_rng(0).standard_normal((2, rows.length, FEATURES)).astype(np.float32)
    mask = rows.alone(rows.mask, False)
    packed = rows.alone(np.asarray(mix(x, rows.mask, rows.ids)))[mask]
    assert relative(packed, np.asarray(mix(rows.alone(x), mask, None))[mask]) < TOLERANCE[np.float32]


def test_documents_that_begin_between_multiples_are_refused() -> None:
    mixer = layers.create_mixer(
        "dilated_attention", 8, place=Place(num_heads=2), rngs=nnx.Rngs(0), segments=(4, 8), rates=(1, 2)
    )
    x = jnp.zeros((1, 8, 8))
    message = (
        "DilatedAttention counts tokens from the start of the row: documents must begin at multiples of 2, not at 3"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        mixer(x, Tokens(segment_ids=jnp.asarray([[0, 0, 0, 1, 1, 1, 2, 2]])))


def test_combinators_align_what_is_inside() -> None:
    def multiple(spec: Any) -> int:
        return layers.create_mixer(spec, 8, causal=True, place=Place(num_heads=2), rngs=nnx.Rngs(0)).segment_multiple

    aligned = {"name": "dilated_attention", "segments": (8,), "rates": (4,)}
    assert multiple({"name": "parallel", "branches": (aligned, {**aligned, "segments": (6,), "rates": (6,)})}) == 12
    assert multiple({"name": "dilated", "rate": 3, "inner": aligned}) == 12
    assert multiple({"name": "dilated", "rate": 3}) == 1
    turned = layers.create_mixer(
        {"name": "bidirectional", "inner": aligned}, 8, place=Place(num_heads=2), rngs=nnx.Rngs(0)
    )
    assert "segment_ids" not in turned.honors
