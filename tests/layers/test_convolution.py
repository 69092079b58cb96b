"""The short causal convolution against its sum: cut at any token, with rows of different lengths and NaN in the
padding.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layers.convolution import CausalConvolution
from tests.compilation import program


def make(kernel_size: int = 4) -> CausalConvolution:
    layer = CausalConvolution(5, kernel_size, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(5.0)
    return layer


def tokens(length: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, length, 5)).astype(np.float32)


@pytest.mark.parametrize("kernel_size", [1, 4])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_is_the_sum_over_the_last_tokens(kernel_size: int, length: int) -> None:
    layer, x = make(kernel_size), tokens(length)
    want = np.broadcast_to(np.asarray(layer.bias[...]), x.shape).copy()
    for t in range(length):
        for back in range(min(kernel_size, t + 1)):
            want[:, t] += np.asarray(layer.kernel[...])[kernel_size - 1 - back, 0] * x[:, t - back]
    np.testing.assert_allclose(layer(x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel_size", [1, 2, 4])
def test_extends_cut_anywhere_with_rows_of_different_lengths(kernel_size: int) -> None:
    """Three rows of 9, 5 and 0 tokens, in pieces whose padding is NaN, then three real tokens more for each."""
    layer, x = make(kernel_size), tokens(12)
    lengths, cuts = np.array([9, 5, 0]), (0, 1, 3, 7, 9)
    run, extend, state = program(layer), program(layer, "extend"), layer.init_state(3)
    whole = np.asarray(run(x))
    for start, end in itertools.pairwise(cuts):
        mask = np.arange(start, end) < lengths[:, None]
        out, state = extend(np.where(mask[..., None], x[:, start:end], np.nan), state, mask)
        np.testing.assert_allclose(np.asarray(out)[mask], whole[:, start:end][mask], rtol=1e-5, atol=1e-6)
    more = np.asarray(extend(x[:, 9:], state)[0])
    for row, length in enumerate(lengths):
        joined = np.concatenate([x[row, :length], x[row, 9:]])[None]
        np.testing.assert_allclose(more[row], np.asarray(run(joined))[0, length:], rtol=1e-5, atol=1e-6)


def test_padding_of_nan_changes_neither_outputs_nor_gradients() -> None:
    layer, x = make(), tokens(6)
    mask = np.arange(6) < np.array([6, 4, 1])[:, None]
    dirty = jnp.where(mask[..., None], x, jnp.nan)

    def loss(layer: CausalConvolution, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask[..., None], jnp.square(layer(x, mask)), 0))

    clean, noisy = (nnx.value_and_grad(loss)(layer, jnp.asarray(a)) for a in (x, dirty))
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(noisy)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kernel_size", [1, 4])
@pytest.mark.parametrize("length", [1, 16, 37])
def test_gradients_are_the_sums_over_all_tokens(kernel_size: int, length: int) -> None:
    """Lengths below, at and beyond the chunk that the kernel's gradient is summed by."""
    layer, x = make(kernel_size), tokens(length)
    errors = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    gradient = nnx.jit(nnx.grad(lambda layer, x: jnp.sum(layer(x) * errors), argnums=(0, 1)))
    of_layer, of_x = gradient(layer, jnp.asarray(x))
    want_kernel, want_x = np.zeros((kernel_size, 1, 5)), np.zeros(x.shape)
    for t in range(length):
        for back in range(min(kernel_size, t + 1)):
            want_kernel[kernel_size - 1 - back, 0] += (errors[:, t] * x[:, t - back]).sum(0)
            want_x[:, t - back] += errors[:, t] * np.asarray(layer.kernel[...])[kernel_size - 1 - back, 0]
    for got, want in ((of_layer.kernel[...], want_kernel), (of_layer.bias[...], errors.sum((0, 1))), (of_x, want_x)):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
