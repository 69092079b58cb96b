"""S4 in float64 against dense matrices: its initialization, its kernel and the kernel's gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers import S4, making
from layers.state_space.s4 import low_rank
from layers.state_space.s4d import poles
from tests.layers.mixer_cases import relative


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def both(x: Any) -> Any:
    """With the conjugates."""
    return jnp.concatenate([x, jnp.conj(x)], axis=-1)


def test_it_begins_as_hippo() -> None:
    """The matrix of HiPPO-LegS in another basis: what powers of it make of B, seen from B and from P."""
    size = 12
    n = np.arange(size)
    root = np.sqrt(2 * n + 1)
    hippo, entering = -np.tril(np.outer(root, root), -1) - np.diag(n + 1.0), root
    low = low_rank(size) + 0j
    low = np.concatenate([low, low])
    poles_ = poles("legs", size)
    matrix = np.diag(np.concatenate([poles_, poles_.conj()])) - np.outer(low, low.conj())
    ours, theirs = 2**0.5 * low, entering
    for _ in range(5):
        for seen, by in ((2**0.5 * low, entering), (low, np.sqrt(n + 0.5))):
            np.testing.assert_allclose(seen.conj() @ ours, by @ theirs, rtol=1e-8)
        ours, theirs = matrix @ ours, hippo @ theirs


def test_kernel_and_its_slopes(double: Any) -> None:
    """By inverses of whole matrices and one product after the other."""
    layer = making.make(lambda rngs: S4(2, state_dim=6, causal=False, param_dtype=jnp.float64, rngs=rngs), nnx.Rngs(0))
    graph, state = nnx.split(layer, nnx.Param)[0], nnx.state(layer, nnx.Param)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda a: a + 0.3 * rng.standard_normal(a.shape), state)
    length, weights = 23, rng.standard_normal((2, 2, 23))

    def dense(state: Any) -> jax.Array:
        layer = nnx.merge(graph, state)
        b, c, p = (both(a[..., 0] + 1j * a[..., 1]) for a in (layer.B[...], layer.C[...], layer.P[...]))
        diagonal = both(-jnp.exp(layer.log_A_real[...]) + 1j * layer.A_imag[...])
        one = jnp.eye(6)
        a = diagonal[:, :, None] * one - p[:, :, None] * jnp.conj(p)[:, None]
        rate = 2 * jnp.exp(-layer.log_dt[...])[:, None, None]
        inverse = jnp.linalg.inv(rate * one - a)
        step, entering = inverse @ (rate * one + a), 2 * jnp.einsum("hij,hj->hi", inverse, b)

        def one_more(h: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            return jnp.einsum("hij,hj->hi", step, h), jnp.einsum("dhi,hi->dh", c, h).real

        return jnp.moveaxis(jax.lax.scan(one_more, entering, None, length)[1], 0, -1)

    def run(kernel: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda state: jnp.sum(weights * kernel(state))))(state)

    found, slopes = run(lambda state: nnx.merge(graph, state).kernel(length))
    expected, theirs = run(dense)
    assert relative(found, expected) < 1e-10
    kernel = jax.jit(lambda state: nnx.merge(graph, state).kernel(length))(state)
    assert relative(kernel, jax.jit(dense)(state)) < 1e-10
    for ours, other in zip(jax.tree.leaves(slopes), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-8, atol=1e-10)


def test_a_step_is_the_kernel(double: Any) -> None:
    """An impulse, token by token."""
    layer = making.make(lambda rngs: S4(3, state_dim=4, causal=True, param_dtype=jnp.float64, rngs=rngs), nnx.Rngs(0))
    impulse = jnp.zeros((1, 9, 3)).at[0, 0].set(1)
    y, _ = jax.jit(lambda u: layer._after(u, None, layer.init_state(1, dtype=jnp.float64)))(impulse)
    assert relative(y[0].T, jax.jit(lambda: layer.kernel(9))()[0]) < 1e-11


def test_an_odd_state_is_refused() -> None:
    with pytest.raises(ValueError, match="state_dim must be even"):
        S4(3, state_dim=5, rngs=nnx.Rngs(0))
