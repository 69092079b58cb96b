"""The short convolution in front of most recurrent mixers, as a layer: causal, depth-wise, with its state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from layers.initializers import create_initializer, variance_scaling, zeros
from layers.recurrent import Recurrent
from layers.tokens import Tokens
from pallas_kernels import short_convolution


@struct.dataclass
class ConvolutionState:
    """The inputs that the next tokens still see.

    Attributes:
      inputs: (batch, kernel_size - 1, features), the last inputs, zeros before the start of their document.
      segment: (batch,) int32, the id of that document.
    """

    inputs: jax.Array
    segment: jax.Array


class CausalConvolution(Recurrent):
    """Depth-wise 1-D convolution that looks back only: y_t = bias + sum_i kernel[i] x_{t - kernel_size + 1 + i}, zeros
    before the start.

    Parameters ``kernel`` (kernel_size, 1, features), the layout of a grouped ``nnx.Conv``, and ``bias`` (features,).
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
        """Args:
          kernel_size: number of tokens that an output depends on, itself included.
          use_bias: whether there is a bias.

        Raises:
          ValueError: ``kernel_size`` below 1.
        """
        if kernel_size < 1:
            raise ValueError(f"CausalConvolution: kernel_size must be at least 1; got {kernel_size}")
        self.kernel = nnx.Param(create_initializer(kernel_init)(rngs.params(), (kernel_size, 1, features), param_dtype))
        self.bias = nnx.Param(zeros(rngs.params(), (features,), param_dtype)) if use_bias else None
        self.features, self.kernel_size, self.dtype = features, kernel_size, dtype

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> ConvolutionState:
        """The state before the first token: zeros."""
        inputs = jnp.zeros((batch_size, self.kernel_size - 1, self.features), dtype)
        return ConvolutionState(inputs, jnp.zeros((batch_size,), jnp.int32))

    def recur(
        self, x: jax.Array, tokens: Tokens, state: ConvolutionState | None
    ) -> tuple[jax.Array, ConvolutionState | None]:
        if state is None:
            return short_convolution(*self._cast(x), starts=tokens.starts()), None
        return self.read(x, state, tokens)

    def read(
        self, x: jax.Array, state: ConvolutionState, tokens: Tokens, opening: jax.Array | None = None
    ) -> tuple[jax.Array, ConvolutionState]:
        """As :meth:`extend`, but documents that begin among the tokens see ``opening`` before their first token.

        Args:
          opening: (kernel_size - 1, features); None means zeros.
        """
        starts = tokens.starts(state.segment)
        y, inputs = short_convolution(
            *self._cast(x), mask=tokens.mask, starts=starts, state=state.inputs, return_state=True
        )
        if opening is not None and starts is not None and self.kernel_size > 1:
            y, inputs = self._opened(y, inputs, opening, starts, tokens.mask)
        return y, ConvolutionState(inputs, tokens.segment_after(state.segment))

    def _opened(
        self, y: jax.Array, inputs: jax.Array, opening: jax.Array, starts: jax.Array, mask: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Adds the contribution of ``opening`` to the outputs at the start of documents, and to the inputs that are
        kept.
        """
        size, (batch, length) = len(opening), starts.shape
        nothing, kernel, _ = self._cast(jnp.zeros((1, size, self.features), y.dtype))
        table = short_convolution(nothing, kernel, state=opening[None].astype(y.dtype))[0]
        index = jnp.arange(length)
        first = jax.lax.cummax(jnp.where(starts, index, -1), axis=1)
        place = index - first
        seen = (first >= 0) & (place < size)
        y = y + jnp.where(seen[..., None], table[jnp.minimum(place, size - 1)], 0)
        count = jnp.full((batch,), length) if mask is None else jnp.sum(mask, axis=1)
        left = jnp.arange(size) + (count - first[:, -1])[:, None]  # in the opening, of each input that is left to see
        missing = (first[:, -1:] >= 0) & (left < size)
        return y, jnp.where(missing[..., None], opening[jnp.minimum(left, size - 1)].astype(inputs.dtype), inputs)

    def _cast(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """``x``, the kernel and the bias in the dtype of the computation."""
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel.dtype)
        return (
            x.astype(dtype),
            self.kernel[...].astype(dtype),
            None if self.bias is None else self.bias[...].astype(dtype),
        )
