"""Bidirectional gated linear attention of maps: ViG, Linear-complexity Visual Sequence Learning with Gated Linear
Attention (Liao et al., AAAI 2025, arXiv:2405.18425).

    u = f(depthwise3x3(x));    q, k, v = W u;    [g^>; g^<] = log_sigmoid(W_2 W_1 u + b) / 16
    S^>_t = exp(g^>_t) S^>_{t-1} + k_t v_t^T    in row-major order, S^< with g^< in reverse
    o_t = (q_t S^>_t + q_t S^<_t) / (2 sqrt(d))
    y = W_o f'(s RMS(o) + (1 - s) RMS(u)),    s = sigmoid(W_s u + b_s)

The two directions share queries, keys and values and differ only in their gates; each token is counted in both. RMS is
RMSNorm per head. Tiny ViG uses SiLU for f and f', the larger models neither.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.depthwise import DepthwiseConv
from layers.initializers import variance_scaling
from layers.linear import Linear
from layers.low_rank import LowRank
from layers.mixer import Mixer, finite_padding, register_mixer, without_padding
from layers.norm import create_norm
from layers.tokens import Tokens
from pallas_kernels import linear_attention
from primitives.exponential import silu

# The authors' initializer: small, so that the decays start close to 1.
_INIT = variance_scaling(2**-5.0, "fan_avg", "uniform")


@register_mixer("direction_gated_linear")
class DirectionGatedLinearAttention(Mixer):
    """Bidirectional gated linear attention over a map in row-major order, with separate gates per direction and a local
    branch.

    Masked tokens count as zeros in the convolution and do not change the recurrent state.

    Parameters: ``conv`` (depth-wise, no bias), ``query``, ``key``, ``value``, ``out`` (linear, no bias), ``decay`` (low
    rank), ``gate`` (linear), ``norm``, ``local_norm`` (features of a head).
    """

    layouts = ("grid",)
    paper = (206,)

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        key_expansion: float = 0.5,
        rank: int = 16,
        temperature: float = 16.0,
        activated: bool = False,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: number of heads.
          key_expansion: features of queries and of keys / features.
          rank, temperature: rank of the projection to the decays, and divisor of their logarithms.
          activated: apply SiLU after the convolution and before ``out``.
          epsilon: epsilon of the norms.

        Raises:
          ValueError: features, or those of the keys, not divisible by num_heads.
        """
        keys = int(features * key_expansion)
        if features % num_heads or keys % num_heads:
            raise ValueError(f"{features} features, and {keys} of the keys, can't be split over {num_heads} heads")
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        linear: dict[str, Any] = {"use_bias": False, "kernel_init": _INIT, **common}
        self.conv = DepthwiseConv(features, 3, use_bias=False, **common)
        self.query, self.key = Linear(features, keys, **linear), Linear(features, keys, **linear)
        self.value, self.out = Linear(features, features, **linear), Linear(features, features, **linear)
        self.decay = LowRank(features, rank, 2 * keys, kernel_init=_INIT, **common)
        self.gate = Linear(features, features, kernel_init=_INIT, **common)
        norms: dict[str, Any] = {"epsilon": epsilon, **common}
        self.norm = create_norm("rms", features // num_heads, **norms)
        self.local_norm = create_norm("rms", features // num_heads, **norms)
        self.num_heads, self.temperature, self.activated = num_heads, temperature, activated

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        batch, height, width, features = x.shape
        u = self.conv(without_padding(finite_padding(x, tokens.mask), tokens.mask))
        u = (silu(u) if self.activated else u).reshape(batch, height * width, features)

        def heads(a: jax.Array) -> jax.Array:
            return a.reshape(*a.shape[:2], self.num_heads, -1)

        q, k, v = (heads(layer(u)) for layer in (self.query, self.key, self.value))
        gates = jax.nn.log_sigmoid(self.decay(u).astype(jnp.promote_types(x.dtype, jnp.float32))) / self.temperature
        forward, backward = (heads(a) for a in jnp.split(gates, 2, axis=-1))
        if tokens.mask is not None:
            real = tokens.mask.reshape(batch, -1, 1)
            k, forward, backward = (without_padding(a, real) for a in (k, forward, backward))
        scale = q.shape[-1] ** -0.5
        y = linear_attention(q, k, v, decay=forward, backward_decay=backward, scale=scale, causal=False)
        # The op counts the token itself only once.
        own = jnp.sum(q.astype(forward.dtype) * k.astype(forward.dtype), -1, keepdims=True) * scale
        y = ((y.astype(forward.dtype) + own * v.astype(forward.dtype)) / 2).astype(v.dtype)
        share = jax.nn.sigmoid(heads(self.gate(u)))
        y = (self.norm(y) * share + self.local_norm(heads(u)) * (1 - share)).reshape(x.shape)
        return self.out(silu(y) if self.activated else y)
