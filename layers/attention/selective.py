"""Selective self-attention: Selective Attention, Enhancing Transformer through Principled Context Control (Zhang et
al., NeurIPS 2024, arXiv:2411.12892), section 3.

    y = softmax((t_q q) k^T / sqrt(d)) (t_v v)        t(x_i) = tanh(f(x_i)) + 1 + sigmoid(alpha) log(n_i)

Each query has an inverse temperature, and each value a factor, computed from the token and the number n_i of tokens
that it sees. f is the dot product of a learned vector with gelu of the query or value head ("features", which shares
the projections' weights), or an MLP of the token whose hidden size is head_dim, which is our choice. The authors' code
on GitHub has only the positional term.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from layers.attention.multi_head import AttentionOptions, MultiHeadAttention
from layers.attention.projected import of_projections
from layers.broadcast import widened
from layers.initializers import constant
from layers.linear import Linear
from layers.mixer import register_mixer
from layers.mlp import gelu
from layers.module import Module
from layers.tokens import Continuation, Tokens


class Temperature(Module):
    """t, per head.

    Parameters: ``alpha``, a scalar, for the positional term; ``weight`` (heads, head_dim), or ``hidden`` and ``out``
    (linear), for f.
    """

    undecayed = ("alpha",)

    def __init__(
        self,
        features: int,
        num_heads: int,
        head_dim: int,
        *,
        token: Literal["features", "mlp"] | None,
        alpha: float | None,
        kernel_init: Any,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        """Args: as in :class:`SelectiveAttention`, for one of its projections."""
        self.alpha = None if alpha is None else nnx.Param(constant(alpha)(rngs.params(), (), param_dtype))
        shape = (num_heads, head_dim)
        self.weight = nnx.Param(kernel_init(rngs.params(), shape, param_dtype)) if token == "features" else None
        common: dict[str, Any] = {"kernel_init": kernel_init, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.hidden = Linear(features, head_dim, **common) if token == "mlp" else None
        self.out = Linear(head_dim, num_heads, **common) if token == "mlp" else None
        self.shape = shape

    def __call__(self, heads: Linear, x: jax.Array, seen: jax.Array) -> jax.Array:
        """t, float32 (batch, length, heads).

        Args:
          heads: the query or value projection.
          x: tokens (batch, length, features).
          seen: number of tokens that each one sees, (batch or 1, length).
        """
        factor = jnp.ones((*x.shape[:2], self.shape[0]), jnp.float32)
        if self.weight is not None:
            made = gelu(heads(x).reshape(*x.shape[:2], *self.shape).astype(jnp.float32))
            factor += jnp.tanh(jnp.sum(made * self.weight[...].astype(jnp.float32), -1))
        if self.hidden is not None and self.out is not None:
            factor += jnp.tanh(self.out(gelu(self.hidden(x))).astype(jnp.float32))
        if self.alpha is not None:
            factor += jax.nn.sigmoid(widened(self.alpha[...])) * jnp.log(seen.astype(jnp.float32))[..., None]
        return factor


@register_mixer("selective_attention")
class SelectiveAttention(MultiHeadAttention):
    """Softmax attention with a temperature per query and a factor per value.

    Parameters: those of :class:`MultiHeadAttention`, and ``query_temperature``, ``value_temperature``.
    """

    paper = (33,)

    def __init__(
        self,
        features: int,
        *,
        query: bool = True,
        value: bool = True,
        token: Literal["features", "mlp"] | None = "features",
        alpha: float | None = 0.0,
        **options: Unpack[AttentionOptions],
    ):
        """Args:
          query, value: whether queries and values have factors.
          token: form of f; None leaves it out.
          alpha: initial value of the parameter whose sigmoid scales the positional term; -8 with ``kernel_init=zeros``
            starts nearly as plain attention, for fine-tuning. None leaves the term out.
          options: as in :class:`MultiHeadAttention`.

        Raises:
          ValueError: an unknown ``token``.
        """
        if token not in ("features", "mlp", None):
            raise ValueError(f'token={token!r} is not known: "features", "mlp" or None')
        super().__init__(features, **options)
        heads = (self.num_heads if query else 0, self.num_kv_heads if value else 0)
        made = {"token": token, "alpha": alpha, **of_projections(options)}
        self.query_temperature, self.value_temperature = (
            Temperature(features, count, self.head_dim, **made) if count else None for count in heads
        )

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        q, v = self._scaled(q, v, x, tokens.count(x.shape[1], causal=self.causal))
        return super().core(q, k, v, x, tokens)

    def core_next(
        self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens, state: Any, after: Continuation
    ) -> tuple[jax.Array, Any]:
        q, v = self._scaled(q, v, x, after.positions + 1)
        return super().core_next(q, k, v, x, tokens, state, after)

    def _scaled(self, q: jax.Array, v: jax.Array, x: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Queries and values times their factors; the scalar factor commutes with the rotary embedding of q."""
        if self.query_temperature is not None:
            q = q * self.query_temperature(self.query, x, seen)[..., None].astype(q.dtype)
        if self.value_temperature is not None:
            v = v * self.value_temperature(self.value, x, seen)[..., None].astype(v.dtype)
        return q, v
