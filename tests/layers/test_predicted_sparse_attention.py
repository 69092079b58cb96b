"""What predicted sparse attention reports and refuses; test_recorded_models.py compares with the authors' code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layers
from layers import AuxLoss, Tokens, collecting
from layers.initializers import truncated_normal
from layers.sparse.predicted import _largest
from tests.layers.mixer_cases import relative


def make(**options: float) -> layers.PredictedSparseAttention:
    sizes = {"num_heads": 2, "grid": (4, 3), "prefix": 1, "coefficients": 2, "kernel_init": truncated_normal(0.5)}
    return layers.PredictedSparseAttention(8, **sizes, **options, rngs=nnx.Rngs(0))  # type: ignore[arg-type]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_predictors_learn_from_the_weights_of_dense_attention() -> None:
    """The loss is that of the equation, and has a gradient for what chooses and none for queries and keys beside it."""
    mixer, x = make(keep=1.0), np.random.default_rng(0).standard_normal((2, 13, 8)).astype(np.float32)
    graphdef, state = nnx.split(mixer)

    def loss(state: nnx.State) -> jax.Array:
        made = nnx.merge(graphdef, state)
        with collecting(AuxLoss) as sown:
            made(x, Tokens(grid=(4, 3)))
        return sown.named(made, AuxLoss)["attention_reconstruction"]

    found, gradient = jax.value_and_grad(loss)(state)
    wide = {name: np.asarray(value, np.float64) for name, value in layers.flatten(mixer).items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ wide[f"{name}.kernel"] + wide[f"{name}.bias"]

    q, k = (linear(name, x.astype(np.float64)).reshape(2, 13, 2, 4) for name in ("query", "key"))
    weights = softmax(np.einsum("bnhd,bmhd->bhnm", q, k) / 2)[:, :, 1:]
    mixed = np.einsum("bnhc,nr->bhrc", linear("key_down", k), wide["mixtures"])
    likeness = softmax(np.einsum("bnhc,bhrc->bhnr", linear("query_down", q)[:, 1:], mixed) / 2**0.5)
    want = np.square(likeness @ wide["basis"].T - weights).sum() / 4
    assert relative(found, want) < 1e-5
    sizes = {name: float(np.abs(g).max()) for name, g in layers.flatten(nnx.merge(graphdef, gradient)).items()}
    assert all(sizes[name] > 0 for name in ("query_down.kernel", "key_down.kernel", "mixtures", "basis"))
    assert sizes["value.kernel"] == 0


def test_all_connections_are_dense_attention() -> None:
    x = np.random.default_rng(0).standard_normal((2, 13, 8)).astype(np.float32)
    whole, nearly = make(keep=1.0), make(keep=0.99)
    assert relative(nearly(x, Tokens(grid=(4, 3))), whole(x, Tokens(grid=(4, 3)))) < 1e-5
    few = make(keep=0.3)
    assert relative(few(x, Tokens(grid=(4, 3))), whole(x, Tokens(grid=(4, 3)))) > 1e-2


@pytest.mark.parametrize("keep", [0.0, 1.5])
def test_other_shares_are_refused(keep: float) -> None:
    with pytest.raises(ValueError, match="keep is a fraction of the tokens, above 0 and at most 1"):
        make(keep=keep)


@pytest.mark.parametrize("kind", ["different", "ties", "infinite", "zeros of both signs"])
def test_the_largest_entries_are_those_of_a_stable_sort(kind: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, 17)).astype(np.float32)
    if kind == "ties":
        x = np.round(x)
    elif kind == "infinite":
        x[..., ::2] = -np.inf
        x[..., 1] = np.inf
    elif kind == "zeros of both signs":
        x = np.where(x > 0, np.float32(0.0), np.float32(-0.0))
    for count in (1, 4, 17):
        first = np.argsort(-x, axis=-1, kind="stable")[..., :count]
        expected = np.zeros(x.shape, bool)
        np.put_along_axis(expected, first, True, axis=-1)
        np.testing.assert_array_equal(_largest(jnp.asarray(x), count), expected)
