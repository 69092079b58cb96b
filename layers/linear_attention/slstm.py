"""The scalar LSTM: xLSTM (Beck et al., 2024, arXiv:2405.04517), section 2.2.

    a = silu(conv(x))
    i, f = B_i a + R_i h_{t-1} + b_i, B_f a + R_f h_{t-1} + b_f
    z, o = B_z x + R_z h_{t-1} + b_z, B_o x + R_o h_{t-1} + b_o
    c_t = sigmoid(f) c_{t-1} + exp(i) tanh(z)        n_t = sigmoid(f) n_{t-1} + exp(i)
    h_t = sigmoid(o) c_t / n_t        y = GroupNorm(h)

B and R have one diagonal block per head. Both sums are stored times exp(-m_t), m_t = max(log sigmoid(f) + m_{t-1}, i),
which cancels in h. Because the gates depend on h_{t-1}, tokens are processed sequentially, in training too.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import widened
from layers.convolution import CausalConvolution
from layers.initializers import constant, zeros
from layers.linear import BlockLinear
from layers.linear_attention.memory import per_head
from layers.mixer import register_mixer
from layers.norm import group_norm
from layers.recurrent import Recurrent, RecurrentState
from layers.tokens import Tokens
from primitives.exponential import silu, softplus


@register_mixer("slstm")
class SLSTM(Recurrent):
    """An LSTM with exponential input gates and recurrent weights within heads. It can track states, but is sequential.

    Parameters: ``input``, ``forget``, ``cell``, ``output`` and ``recurrent`` (linear, block-diagonal by heads;
    ``recurrent`` holds R of i, f, z and o), ``bias`` (heads, 4, head_dim), ``scale`` (features,) of the norm, to which
    1 is added; ``conv`` with a convolution.
    """

    undecayed = ("bias",)

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        conv_size: int | None = 4,
        index: int = 0,
        depth: int = 1,
        recurrent_init: Any = zeros,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: groups of features that interact through R.
          conv_size: kernel size of the convolution before i and f; None for no convolution.
          index, depth: index of the block, and number of blocks of the model; they set the initial biases of f.
          recurrent_init: initializer of R, zeros in the authors' code.
          norm_epsilon: epsilon of the norm of each head's output.

        Raises:
          ValueError: heads that do not divide the features.
        """
        size = per_head(features, num_heads)
        self.num_heads, self.head_dim, self.epsilon = num_heads, size, norm_epsilon
        made: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv = CausalConvolution(features, conv_size, **made) if conv_size else None
        block: dict[str, Any] = {"use_bias": False, **made}
        self.input = BlockLinear(features, num_heads, **block)
        self.forget = BlockLinear(features, num_heads, **block)
        self.cell = BlockLinear(features, num_heads, **block)
        self.output = BlockLinear(features, num_heads, **block)
        recurrent = {"out_features": 4 * features, "kernel_init": recurrent_init, **block}
        self.recurrent = BlockLinear(features, num_heads, **recurrent)
        power = 0.3 + 1.3 * index / max(depth - 1, 1)
        kept = tuple(5 - 12 * (n / max(size - 1, 1)) ** power for n in range(size))
        rows = tuple(kept if gate == 1 else (0.0,) * size for gate in range(4))
        self.bias = nnx.Param(constant(rows)(None, (num_heads, 4, size), param_dtype))
        self.scale = nnx.Param(zeros(None, (features,), param_dtype))

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return 4, self.num_heads, self.head_dim  # h, c, n and m

    @property
    def convolutions(self) -> tuple[CausalConvolution, ...]:
        return () if self.conv is None else (self.conv,)

    def recur(
        self, x: jax.Array, tokens: Tokens, state: RecurrentState | None
    ) -> tuple[jax.Array, RecurrentState | None]:
        (a,), seen = self.convolve([x], tokens, state)
        a = silu(a) if self.convolutions else a
        wide = jnp.promote_types(a.dtype, jnp.float32)
        gates = [self.input(a), self.forget(a), self.cell(x), self.output(x)]
        shape = (*x.shape[:2], self.num_heads, self.head_dim)
        given = jnp.stack([gate.reshape(shape) for gate in gates], axis=3).astype(wide)
        memory = jnp.zeros((x.shape[0], *self.memory_shape), wide) if state is None else state.memory.astype(wide)
        flags = (self.starts(tokens, state), tokens.mask)
        # Cast to float32 outside the loop: the gradients of its constants are summed over the steps.
        weights, bias = widened(self.recurrent.kernel[...]), widened(self.bias[...])
        weights = weights.reshape(*weights.shape[:2], 4, -1)

        def step(memory: jax.Array, token: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
            given, begins, real = token
            before = memory if begins is None else jnp.where(begins[:, None, None, None], 0, memory)
            h, c, n, m = jnp.moveaxis(before, 1, 0)
            i, f, z, o = jnp.moveaxis(given + bias + jnp.einsum("bhd,hdge->bhge", h, weights), 2, 0)
            kept, nothing = m - softplus(-f), n == 0  # before the first token
            largest = jax.lax.stop_gradient(jnp.where(nothing, i, jnp.maximum(i, kept)))
            written = jnp.exp(i - largest)
            kept = jnp.where(nothing, 0, jnp.exp(jnp.where(nothing, 0, kept - largest)))
            c, n = kept * c + written * jnp.tanh(z), kept * n + written
            after = jnp.stack([jax.nn.sigmoid(o) * c / n, c, n, largest], axis=1)
            after = after if real is None else jnp.where(real[:, None, None, None], after, memory)
            return after, after[:, 0]

        read: Any = (jnp.moveaxis(given, 1, 0), *(None if flag is None else flag.T for flag in flags))
        memory, h = jax.lax.scan(step, memory, read)
        y = group_norm(jnp.moveaxis(h, 0, 1), 1 + widened(self.scale[...]), None, self.epsilon).astype(a.dtype)
        return y, state and state.after(tokens, memory=memory, convolutions=seen)
