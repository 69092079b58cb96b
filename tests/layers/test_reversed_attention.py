"""Reversed attention against its equation, with the matrix of all pairs, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import layers
from layers import Diagnostic, collecting
from layers.initializers import truncated_normal
from tests.layers.mixer_cases import relative


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def test_tokens_send_to_those_that_they_attend_to() -> None:
    """And padding neither sends nor gets."""
    mixer = layers.ReversedAttention(8, num_heads=2, kernel_init=truncated_normal(1.0), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 7, 8)).astype(np.float32)
    mask = np.arange(7) < np.array([[7], [5]])
    with collecting(Diagnostic) as sown:
        y = np.asarray(mixer(x, jnp.asarray(mask)))
    (reported,) = sown.named(mixer, Diagnostic).values()
    wide = {name: np.asarray(value, np.float64) for name, value in layers.flatten(mixer).items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ wide[f"{name}.kernel"] + wide.get(f"{name}.bias", 0)

    for row, length in enumerate((7, 5)):
        u = x[row, :length].astype(np.float64)
        q, k, v = (linear(name, u).reshape(length, 2, 4) for name in ("query", "key", "value"))
        hidden = linear("message_up", u)
        hidden = hidden * 0.5 * (1 + np.asarray(jax.scipy.special.erf(hidden / 2**0.5)))
        message = 1 / (1 + np.exp(-linear("message_down", hidden)))
        sent = softmax(linear("head_choice", u) / 0.1) * message  # (j, heads)
        weights = softmax(np.einsum("jhd,ihd->hji", q, k) / 2)  # j attends to i
        found = np.einsum("hji,jh,jhd->ihd", weights, sent, v)
        want = linear("out", found.reshape(length, 8))
        assert relative(y[row, :length], want) < 1e-4
        dense = np.einsum("hji,jh->hij", weights, sent)
        assert relative(np.asarray(reported)[row, :, :length, :length], dense) < 1e-4


def test_large_padding_gets_nothing() -> None:
    """Its logits, which no sum bounds, are far above those of the real tokens."""
    mixer = layers.ReversedAttention(8, num_heads=2, kernel_init=truncated_normal(1.0), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(mixer)
    x = np.random.default_rng(0).standard_normal((2, 7, 8)).astype(np.float32)
    mask = np.arange(7) < np.array([[7], [1]])

    @jax.jit
    def run(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mix = lambda x: nnx.merge(graphdef, state, copy=True)(x, mask)  # noqa: E731
        y, pull = jax.vjp(mix, x)
        return y, pull(jnp.where(mask[..., None], y, 0))[0]

    (y, slope), (want, wanted) = (run(np.where(mask[..., None], x, fill)) for fill in (np.float32(0), 100 * x))
    assert np.isfinite(wanted).all()
    assert relative(y[mask], want[mask]) < 1e-6
    assert relative(slope, wanted) < 1e-6
