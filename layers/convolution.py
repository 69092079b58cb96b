"""The short convolution in front of most recurrent mixers: causal, depth-wise, by shifted additions, with its state.

Each tap is one multiply-add of a shifted view, which XLA fuses into one pass; its own grouped
convolution is some 95 times slower on a CPU (kernel of 4). The gradient of the kernel is a sum over
all tokens, which XLA's CPU reductions take 50 times longer for than the additions written out here.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import create_initializer, variance_scaling, zeros
from layers.module import Module
from pallas_kernels import operations, sequence

# Tokens whose share of the kernel's gradient is written out as additions; a scan goes through the rest.
CHUNK = 16


@jax.custom_vjp
def _convolve(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """y_t = bias + sum_i kernel[i] x_{t + i}: x (batch, length + size - 1, features), kernel (size, features)."""
    length = x.shape[1] - kernel.shape[0] + 1
    y = bias
    with operations.multiply_adds():
        for i in range(kernel.shape[0]):
            y = y + x[:, i : i + length] * kernel[i]
    return y


def _forward(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, bias), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, kernel = saved
    size, wide = kernel.shape[0], jnp.promote_types(x.dtype, jnp.float32)
    dx = functools.reduce(jnp.add, (jnp.pad(dy * kernel[i], ((0, 0), (i, size - 1 - i), (0, 0))) for i in range(size)))
    pad = -dy.shape[1] % CHUNK
    seen, dy = (jnp.pad(a, ((0, 0), (0, pad), (0, 0))) for a in (x, dy))

    def add(sums: list[jax.Array], start: jax.Array) -> tuple[list[jax.Array], None]:
        tokens = jax.lax.dynamic_slice_in_dim(seen, start, CHUNK + size - 1, axis=1).astype(wide)
        errors = jax.lax.dynamic_slice_in_dim(dy, start, CHUNK, axis=1).astype(wide)
        for t in range(CHUNK):
            sums = [total + tokens[:, t + i] * errors[:, t] for i, total in enumerate(sums[:size])] + [sums[size] + errors[:, t]]
        return sums, None

    sums, _ = jax.lax.scan(add, [jnp.zeros((x.shape[0], x.shape[2]), wide)] * (size + 1), jnp.arange(0, dy.shape[1], CHUNK))
    *taps, errors = (jnp.sum(total, axis=0).astype(kernel.dtype) for total in sums)
    return dx, jnp.stack(taps), errors


_convolve.defvjp(_forward, _backward)


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
        x, look_back = _without_padding(x, mask), self.kernel_size - 1
        before = self.init_state(x.shape[0], dtype=x.dtype) if state is None else state.astype(x.dtype)
        if sequence.objection(x.shape[1]) is not None or x.shape[1] // sequence.parts() < look_back:
            return _convolve(*self._cast(jnp.concatenate([before, x], axis=1)))

        def part(x: jax.Array, kernel: jax.Array, bias: jax.Array, before: jax.Array) -> jax.Array:
            return _convolve(jnp.concatenate([sequence.tail(x, look_back, before), x], axis=1), kernel, bias)

        x, kernel, bias = self._cast(x)
        return sequence.split(part, (x, kernel, bias, before.astype(x.dtype)), (1, None, None, None), 1)

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
        return _convolve(*self._cast(seen)), kept.astype(state.dtype)

    def _cast(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """``x``, the kernel (kernel_size, features) and the bias in the dtype of the computation."""
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel.dtype)
        x, kernel = x.astype(dtype), self.kernel[...].astype(dtype)
        bias = jnp.zeros((self.features,), dtype) if self.bias is None else self.bias[...].astype(dtype)
        return x, kernel[:, 0], bias


def _without_padding(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Padding can hold anything, NaN included, which would reach the kernel's gradient."""
    return x if mask is None else jnp.where(mask[..., None], x, 0)
