"""The short convolution in front of most recurrent mixers: causal, depth-wise, by shifted additions, with its state.

Each tap is one multiply-add of a shifted view, which XLA fuses into one pass; its own grouped
convolution is some 95 times slower on a CPU (kernel of 4).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import variance_scaling, zeros
from layers.module import Module
from pallas_kernels import operations


class CausalConvolution(Module):
    """Depth-wise 1-D convolution that looks back only: y_t = bias + sum_i kernel[i] x_{t - kernel_size + 1 + i}, zeros before the start.

    Parameters ``kernel`` (kernel_size, 1, features), the layout of a grouped ``nnx.Conv``, and ``bias`` (features,).
    The state is the last kernel_size - 1 inputs of each row, (batch, kernel_size - 1, features).
    """

    def __init__(
        self,
        features: int,
        kernel_size: int = 4,
        *,
        use_bias: bool = True,
        kernel_init: Any = variance_scaling(1 / 3, "fan_in", "uniform"),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if kernel_size < 1:
            raise ValueError(f"CausalConvolution: kernel_size must be at least 1; got {kernel_size}")
        self.kernel = nnx.Param(kernel_init(rngs.params(), (kernel_size, 1, features), param_dtype))
        self.bias = nnx.Param(zeros(rngs.params(), (features,), param_dtype)) if use_bias else None
        self.features, self.kernel_size, self.dtype = features, kernel_size, dtype

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps (batch, length, features) to the same shape; ``mask`` bool (batch, length), True = real, padding trailing."""
        return self._convolve(jnp.pad(_without_padding(x, mask), ((0, 0), (self.kernel_size - 1, 0), (0, 0))))

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> jax.Array:
        """The state before the first token: zeros. ``max_length`` changes nothing."""
        return jnp.zeros((batch_size, self.kernel_size - 1, self.features), dtype)

    def extend(self, x: jax.Array, state: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Convolves new tokens x (batch, new, features) behind those in the state; a masked token, always trailing, leaves its row's state untouched."""
        x = _without_padding(x, mask)
        seen = jnp.concatenate([state.astype(x.dtype), x], axis=1)
        if mask is None:
            kept = seen[:, x.shape[1] :]
        else:
            # A row's state ends at its last real token.
            rows = jnp.sum(mask, axis=1)[:, None] + jnp.arange(self.kernel_size - 1)
            kept = jnp.take_along_axis(seen, rows[..., None], axis=1)
        return self._convolve(seen), kept.astype(state.dtype)

    def _convolve(self, x: jax.Array) -> jax.Array:
        """Without padding of its own: (batch, length + kernel_size - 1, features) to (batch, length, features)."""
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel.dtype)
        x, kernel = x.astype(dtype), self.kernel[...].astype(dtype)
        length = x.shape[1] - self.kernel_size + 1
        y = jnp.zeros((), dtype) if self.bias is None else self.bias[...].astype(dtype)
        with operations.multiply_adds():
            for i in range(self.kernel_size):
                y = y + x[:, i : i + length] * kernel[i, 0]
        return y


def _without_padding(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Padding can hold anything, NaN included, which would reach the kernel's gradient."""
    return x if mask is None else jnp.where(mask[..., None], x, 0)
