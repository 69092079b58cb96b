"""Longformer's attention against its definition, and the number of global tokens that it has room for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import Diagnostic, Tokens, collecting
from tests.layers.mixer_cases import relative

LENGTH, REACH = 13, 2
ROLES = np.zeros((2, LENGTH), np.int32)
ROLES[0, [0, 3, 9]] = 1
ROLES[1, 12] = 1  # padding has no role
ROLES[1, 2] = 5  # of another mixer
MASK = np.arange(LENGTH) < np.array([LENGTH, 10])[:, None]
IDS = np.repeat(np.array([[0, 1], [0, 0]]), (6, 7), axis=1).astype(np.int32)


def made(**options: Any) -> layers.LongformerAttention:
    return layers.LongformerAttention(
        8, num_heads=2, window=2 * REACH, kernel_init=nnx.initializers.normal(0.5), rngs=nnx.Rngs(0), **options
    )


def dense(mixer: layers.LongformerAttention, x: np.ndarray, tokens: Tokens) -> jax.Array:
    """The definition with all scores, masked."""

    def heads(linear: Any) -> jax.Array:
        return linear(x).reshape(2, LENGTH, 2, 4)

    marked = (np.asarray(tokens.roles) == 1) & MASK
    place = np.arange(LENGTH)
    alike = MASK[:, None] & (
        np.ones((2, LENGTH, LENGTH), bool) if tokens.segment_ids is None else IDS[:, :, None] == IDS[:, None]
    )
    near = (np.abs(place[:, None] - place) <= REACH) | marked[:, None]

    def weights(q: jax.Array, k: jax.Array, seen: np.ndarray) -> jax.Array:
        logits = jnp.einsum("bihd,bjhd->bhij", q, k) / 2
        return jax.nn.softmax(jnp.where(seen[:, None], logits, -1e30))

    usual = jnp.einsum(
        "bhij,bjhd->bihd", weights(heads(mixer.query), heads(mixer.key), near & alike), heads(mixer.value)
    )
    theirs = jnp.einsum(
        "bhij,bjhd->bihd", weights(heads(mixer.global_query), heads(mixer.global_key), alike), heads(mixer.global_value)
    )
    return mixer.out(jnp.where(marked[..., None, None], theirs, usual).reshape(2, LENGTH, 8))


@pytest.mark.parametrize("packed", [False, True], ids=["row", "documents"])
def test_is_its_definition(packed: bool) -> None:
    mixer, x = made(max_global=4), np.random.default_rng(0).standard_normal((2, LENGTH, 8)).astype(np.float32)
    tokens = Tokens(MASK, segment_ids=IDS if packed else None, roles=ROLES)
    found, expected = jax.jit(lambda x: (mixer(x, tokens), dense(mixer, x, tokens)))(x)
    assert relative(found[MASK], expected[MASK]) < 1e-5


def test_weights_are_those_of_all_tokens() -> None:
    mixer, x = made(), np.random.default_rng(0).standard_normal((2, LENGTH, 8)).astype(np.float32)

    @jax.jit
    def reported(x: jax.Array) -> jax.Array:
        with collecting(Diagnostic) as sown:
            mixer(x, Tokens(MASK, roles=ROLES))
        return sown.named(mixer)["attention"]

    weights = np.asarray(reported(x))
    assert weights.shape == (2, 2, LENGTH, LENGTH)
    np.testing.assert_allclose(weights.sum(-1)[:, 0][MASK], 1, rtol=1e-5)
    assert (weights[0, :, 3] > 0).all()
    assert ((weights[0, 0, 6] > 0) == np.isin(np.arange(LENGTH), (0, 3, 4, 5, 6, 7, 8, 9))).all()


def test_more_global_tokens_than_there_is_room_for() -> None:
    mixer, x = made(max_global=2), jnp.ones((2, LENGTH, 8))
    with pytest.raises(ValueError, match="a row has 3 global tokens and max_global is 2"):
        mixer(x, Tokens(MASK, roles=ROLES))
    graphdef, state = nnx.split(mixer)
    y = jax.jit(lambda state, x, roles: nnx.merge(graphdef, state)(x, Tokens(MASK, roles=roles)))(state, x, ROLES)
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1]).all()
