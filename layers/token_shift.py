"""The token shift of RWKV (Peng et al., 2023, arXiv:2305.13048, section 3.1): each token is mixed with the previous
one.

The channel mixing of RWKV-7 (2025, arXiv:2503.14456, section 4), and that of RWKV-6 (2024, arXiv:2404.05892, section
4.2), which has a gate:

    y = W_v relu(W_k (x_t + (x_{t-1} - x_t) m))^2
    y = W_v relu(W_k (x_t + (x_{t-1} - x_t) m))^2 * sigmoid(W_r (x_t + (x_{t-1} - x_t) m_r))
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import broadcast
from layers.convolution import CausalConvolution
from layers.initializers import constant, orthogonal, zeros
from layers.linear import Linear
from layers.recurrent import Recurrent
from layers.tokens import Tokens


class TokenShift(CausalConvolution):
    """Returns for each token the previous one, zeros at the start of a document: a convolution without parameters."""

    def __init__(self, features: int, *, dtype: Any = None):
        self.features, self.kernel_size, self.dtype = features, 2, dtype

    def _cast(self, x: jax.Array) -> tuple[jax.Array, jax.Array, None]:
        x = x if self.dtype is None else x.astype(self.dtype)
        return x, jnp.zeros((2, 1, self.features), x.dtype).at[0].set(1), None


def shifted(x: jax.Array, before: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
    """x + (before - x) weight for each of ``weights`` (count, features); ``x`` and ``before`` are (..., features)."""
    difference = before - x
    return tuple(x + difference * broadcast(weight, x.shape, x.dtype) for weight in weights)


class ShiftedMLP(Recurrent):
    """Linear, squared relu, linear, applied to a mixture of each token and the previous one.

    Parameters: ``shift`` (features,), m; ``up`` and ``down`` (linear); with a gate ``gate_shift`` (features,) and
    ``gate`` (linear).
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        index: int = 0,
        depth: int = 1,
        gated: bool = False,
        zero_init: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        index, depth: index of the block and number of blocks, which determine the initial values of m.
        hidden: hidden features.
        gated: RWKV-6's form.
        zero_init: ``down`` and ``gate`` are initialized to 0, as in the authors' code.
        """
        made: dict[str, Any] = {"use_bias": False, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        power = (1 - index / depth) ** (3 if gated else 4)
        begun = tuple(1 - (n / features) ** power for n in range(features))
        zero = {"kernel_init": zeros} if zero_init else {}
        self.shift = nnx.Param(constant(begun)(None, (features,), param_dtype))
        self.before = TokenShift(features, dtype=dtype)
        self.up = Linear(features, hidden, kernel_init=orthogonal(), **made)
        self.down = Linear(hidden, features, **(made | zero))
        self.gate = Linear(features, features, **(made | zero)) if gated else None
        self.gate_shift = nnx.Param(constant(begun)(None, (features,), param_dtype)) if gated else None

    @property
    def convolutions(self) -> tuple[CausalConvolution, ...]:
        return (self.before,)

    def init_state(self, batch_size: int, max_length: int | None = None, dtype: Any = jnp.float32) -> Any:
        """The state: the last token of each row."""
        return self.before.init_state(batch_size, dtype=dtype)

    def recur(self, x: jax.Array, tokens: Tokens, state: Any) -> tuple[jax.Array, Any]:
        before, state = self.before.recur(x, tokens, state)
        (mixed,) = shifted(x, before, self.shift[...][None])
        y = self.down(jnp.square(jax.nn.relu(self.up(mixed))))
        if self.gate is not None and self.gate_shift is not None:
            (mixed,) = shifted(x, before, self.gate_shift[...][None])
            y = y * jax.nn.sigmoid(self.gate(mixed))
        return y, state
