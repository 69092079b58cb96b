"""Kimi Delta Attention: Kimi Linear, An Expressive, Efficient Attention Architecture (Kimi Team, 2025,
arXiv:2510.26692), section 3.

    q, k, v = silu(conv(W x));  q, k normalized;  beta = sigmoid(W_b x), or twice that
    S <- diag(exp g_t) S                                   g = -A softplus(W_2 W_1 x + b), per key channel
    S <- (I - beta k k^T) S + beta k v^T
    y_t = W_o (RMSNorm(q_t S / sqrt(K)) * sigmoid(W_4 W_3 x))

With a lower bound c < 0 of the log decay, g = c sigmoid(A (W_2 W_1 x + b)).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from layers.convolution import CausalConvolution
from layers.delta.memory import correct, normalized
from layers.initializers import zeros
from layers.linear import Linear
from layers.linear_attention.memory import per_head
from layers.low_rank import LowRank
from layers.mixer import Mixer, register_mixer
from layers.norm import GatedRMSNorm
from layers.recurrent import Recurrent, RecurrentState
from layers.state_space.initialization import A_LOG, fan_in_uniform, step_bias
from layers.tokens import Tokens
from primitives.exponential import silu, softplus


@register_mixer("kimi_delta_attention")
class KimiDeltaAttention(Recurrent):
    """The gated delta rule with a data-dependent decay per key channel.

    Parameters: ``query``, ``key``, ``value``, ``beta``, ``out`` (linear), ``decay``, ``gate`` (low rank), ``A_log``
    (value_heads,), ``dt_bias`` (value_heads * head_dim,), ``norm`` per head; ``query_conv``, ``key_conv``,
    ``value_conv`` with convolutions.
    """

    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {**Mixer.sharding, "beta.kernel": (None, "tensor")}

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        num_value_heads: int | None = None,
        head_dim: int | None = None,
        value_expansion: float = 1.0,
        rank: int | None = None,
        negative: bool = False,
        lower_bound: float | None = None,
        conv_size: int | None = 4,
        conv_bias: bool = False,
        gate_bias: bool = True,
        norm_epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads, head_dim: number of query and key heads, and their features; default features / num_heads.
          num_value_heads: number of value heads, each with its own memory and decays; a multiple of num_heads, in
            groups that share queries and keys. Default num_heads.
          value_expansion: features of a value head / head_dim.
          rank: rank of the projections from a token to its decays and to its gates; default the features of a value
            head.
          negative: beta in (0, 2) instead of (0, 1).
          lower_bound: c, lower bound of the log decay of a token, < 0; None for none.
          conv_size, conv_bias: kernel size of the convolutions, None for no convolution, and whether they have biases.
          gate_bias: whether the gates have a bias.
          norm_epsilon: epsilon of the norm of each head's output.

        Raises:
          ValueError: heads that do not fit together, a head size that is not a whole number, or a bound that is not
            negative.
        """
        if lower_bound is not None and not lower_bound < 0:
            raise ValueError(f"KimiDeltaAttention: lower_bound must be negative; got {lower_bound}")
        head_dim = head_dim or per_head(features, num_heads)
        value_heads, value_dim = num_value_heads or num_heads, value_expansion * head_dim
        if value_heads % num_heads or value_dim != int(value_dim):
            raise ValueError(
                f"num_value_heads {value_heads} must be a multiple of num_heads {num_heads}, and {value_dim} features "
                f"of a value head a whole number"
            )
        self.num_heads, self.value_heads, self.head_dim, self.value_dim = (
            num_heads,
            value_heads,
            head_dim,
            int(value_dim),
        )
        self.negative, self.lower_bound = negative, lower_bound
        keys, values, decays = num_heads * head_dim, value_heads * self.value_dim, value_heads * head_dim
        made: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        drawn = {"kernel_init": fan_in_uniform(), **made}
        self.query = Linear(features, keys, use_bias=False, **drawn)
        self.key = Linear(features, keys, use_bias=False, **drawn)
        self.value = Linear(features, values, use_bias=False, **drawn)
        self.beta = Linear(features, value_heads, use_bias=False, **drawn)
        convolution = {"use_bias": conv_bias, **made}
        self.query_conv = CausalConvolution(keys, conv_size, **convolution) if conv_size else None
        self.key_conv = CausalConvolution(keys, conv_size, **convolution) if conv_size else None
        self.value_conv = CausalConvolution(values, conv_size, **convolution) if conv_size else None
        self.decay = LowRank(features, rank or self.value_dim, decays, use_bias=False, **drawn)
        self.gate = LowRank(features, rank or self.value_dim, values, use_bias=gate_bias, **drawn)
        log_rate = A_LOG if lower_bound is None else zeros
        self.A_log = nnx.Param(log_rate(rngs.params(), (value_heads,), param_dtype))
        self.dt_bias = nnx.Param(step_bias()(rngs.params(), (decays,), param_dtype))
        self.norm = GatedRMSNorm(
            self.value_dim,
            gated="after",
            activation=jax.nn.sigmoid,
            epsilon=norm_epsilon,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.out = Linear(values, features, use_bias=False, **drawn)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return self.value_heads, self.head_dim, self.value_dim

    @property
    def convolutions(self) -> tuple[CausalConvolution, ...]:
        return tuple(conv for conv in (self.query_conv, self.key_conv, self.value_conv) if conv is not None)

    def recur(
        self, x: jax.Array, tokens: Tokens, state: RecurrentState | None
    ) -> tuple[jax.Array, RecurrentState | None]:
        read, seen = self.convolve([linear(x) for linear in (self.query, self.key, self.value)], tokens, state)
        q, k, v = (
            silu(a).reshape(*x.shape[:2], heads, -1)
            for a, heads in zip(read, (self.num_heads, self.num_heads, self.value_heads), strict=True)
        )
        wide = jnp.promote_types(x.dtype, jnp.float32)
        beta = (2 if self.negative else 1) * jax.nn.sigmoid(self.beta(x).astype(wide))
        y, memory = correct(normalized(q), normalized(k), v, beta, self._log_decay(x, wide), tokens, state)
        y = self.norm(y, self.gate(x).reshape(y.shape))
        return self.out(y.reshape(*x.shape[:2], -1)), state and state.after(tokens, memory=memory, convolutions=seen)

    def _log_decay(self, x: jax.Array, wide: Any) -> jax.Array:
        """The log decay g, (batch, length, value_heads, head_dim)."""
        logits = self.decay(x).astype(wide) + self.dt_bias[...].astype(wide)
        logits = logits.reshape(*x.shape[:2], self.value_heads, self.head_dim)
        rate = jnp.exp(self.A_log[...].astype(wide))[:, None]
        return (
            -rate * softplus(logits) if self.lower_bound is None else self.lower_bound * jax.nn.sigmoid(rate * logits)
        )
