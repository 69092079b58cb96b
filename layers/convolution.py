"""The short convolution in front of most recurrent mixers, as a layer: causal, depth-wise, with its state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import create_initializer, variance_scaling, zeros
from layers.module import Module
from pallas_kernels import short_convolution


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
        self.kernel = nnx.Param(create_initializer(kernel_init)(rngs.params(), (kernel_size, 1, features), param_dtype))
        self.bias = nnx.Param(zeros(rngs.params(), (features,), param_dtype)) if use_bias else None
        self.features, self.kernel_size, self.dtype = features, kernel_size, dtype

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, state: jax.Array | None = None) -> jax.Array:
        """Maps (batch, length, features) to the same shape; ``mask`` bool (batch, length), True = real, padding trailing; zeros before without a state."""
        return short_convolution(*self._cast(x), mask=mask, state=state)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> jax.Array:
        """The state before the first token: zeros. ``max_length`` changes nothing."""
        return jnp.zeros((batch_size, self.kernel_size - 1, self.features), dtype)

    def extend(self, x: jax.Array, state: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Convolves new tokens x (batch, new, features) after those in the state; a masked token, always trailing, leaves its row's state unchanged."""
        return short_convolution(*self._cast(x), mask=mask, state=state, return_state=True)

    def _cast(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """``x``, the kernel and the bias in the dtype of the computation."""
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel.dtype)
        return x.astype(dtype), self.kernel[...].astype(dtype), None if self.bias is None else self.bias[...].astype(dtype)
