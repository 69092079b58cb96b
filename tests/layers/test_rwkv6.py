"""RWKV-6's mixer against its equations, one token after another, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import RWKV6, create_mixer

FEATURES, HEADS = 8, 2


def by_equations(mixer: RWKV6, x: jax.Array) -> jax.Array:
    """(length, features) to the same shape."""

    def affine(layer: nnx.Module, x: jax.Array) -> jax.Array:
        y = x @ layer.kernel[...]
        return y if layer.bias is None else y + layer.bias[...]

    def low_rank(layer: nnx.Module, x: jax.Array) -> jax.Array:
        return affine(layer.up, jnp.tanh(affine(layer.down, x)))

    def step(carry: tuple[jax.Array, jax.Array], token: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        before, state = carry
        d = before - token
        mixed = token + d * mixer.shift[...]
        shares = (getattr(mixer, f"{name}_shift") for name in ("query", "key", "value", "gate", "decay"))
        xr, xk, xv, xg, xw = (token + d * low_rank(share, mixed) for share in shares)
        r, k, v = (
            affine(layer, a).reshape(HEADS, -1) for layer, a in ((mixer.query, xr), (mixer.key, xk), (mixer.value, xv))
        )
        w = jnp.exp(-jnp.exp(low_rank(mixer.decay, xw))).reshape(HEADS, -1)
        written = k[:, :, None] * v[:, None]
        y = jnp.einsum("hk,hkv->hv", r, state + mixer.bonus[...][..., None] * written)
        state = w[..., None] * state + written
        y = (y - y.mean(1, keepdims=True)) / jnp.sqrt(y.var(1, keepdims=True) + 64e-5)
        y = y.reshape(-1) * mixer.norm[...] + mixer.norm_bias[...]
        return (token, state), affine(mixer.out, y * jax.nn.silu(affine(mixer.gate, xg)))

    empty = jnp.zeros(FEATURES), jnp.zeros((HEADS, FEATURES // HEADS, FEATURES // HEADS))
    return jax.lax.scan(step, empty, x)[1]


@pytest.mark.parametrize("length", [1, pytest.param(67, marks=pytest.mark.full)])
def test_equations(length: int) -> None:
    """The output, and the gradients of input and parameters."""
    with jax.enable_x64():
        mixer = create_mixer(
            {"name": "rwkv6", "zero_init": False, "shift_rank": 3, "decay_rank": 3}, FEATURES, causal=True,
            num_heads=HEADS, index=1, depth=3, param_dtype=jnp.float64, rngs=nnx.Rngs(0),
        )  # fmt: skip
        x = jnp.asarray(np.random.default_rng(0).standard_normal((length, FEATURES)))
        graph, state = nnx.split(mixer)

        def ours(state: nnx.State, x: jax.Array) -> jax.Array:
            return nnx.merge(graph, state)(x[None])[0]

        def theirs(state: nnx.State, x: jax.Array) -> jax.Array:
            return by_equations(nnx.merge(graph, state), x)

        def both(state: nnx.State, x: jax.Array) -> tuple[jax.Array, list]:
            found = []
            for form in (ours, theirs):
                y, pull = jax.vjp(form, state, x)
                found.append((y, *jax.tree.leaves(pull(jnp.cos(y)))))
            return found

        for got, want in zip(*jax.jit(both)(state, x), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9 * float(np.abs(want).max()) + 1e-15)
