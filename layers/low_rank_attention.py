"""LAMA: Low Rank Factorization for Compact Multi-Head Self-Attention (Mehta et al., 2019, arXiv:1912.00835), section 3.

    f_kt = tanh((p_k . c) (q_k . h_t))        a_k = softmax over t of f_kt / |f_t|        s_k = sum_t a_kt h_t

Each of m heads pools all tokens h to one vector, with scores from a bilinear form of rank 1: 2 m D parameters, where
attention has 4 D^2. c is the mean of the tokens, or learned, and |f_t| is the norm of a token's scores over the heads.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import Uniform, truncated_normal
from layers.linear import Linear
from layers.mixer import Mixer, register_mixer, without_padding
from layers.module import Diagnostic, Module, parameter
from layers.tokens import Tokens


class LowRankPool(Module):
    """The paper's pooling of n tokens to m vectors. Parameters: ``context_factor``, P, ``token_factor``, Q, (features,
    heads), and with ``context="learned"`` also ``context`` (features,).
    """

    undecayed = ("context",)

    def __init__(
        self,
        features: int,
        num_heads: int,
        *,
        context: Literal["mean", "learned"] = "mean",
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          num_heads: m.
          context: c: "mean", the mean of the real tokens, or "learned", as in the paper's first version.

        Raises:
          ValueError: an unknown context.
        """
        if context not in ("mean", "learned"):
            raise ValueError(f'context is "mean" or "learned", got {context!r}')
        made: Any = {"param_dtype": param_dtype, "rngs": rngs}
        bound = (6 / features) ** 0.5
        draw = Uniform(-bound, bound)
        self.context_factor, self.token_factor = (parameter(draw, (features, num_heads), made) for _ in range(2))
        self.context = parameter(draw, (features,), made) if context == "learned" else None

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Maps (batch, length, features) to (batch, heads, features) and the weights (batch, heads, length), both
        float32.

        Args:
          mask: bool (batch, length), True = real; padding has weight 0, and a row without real tokens gives 0.
        """
        x = without_padding(x, mask).astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.context is not None:
            context = self.context[...].astype(x.dtype)[None]
        else:
            count = x.shape[1] if mask is None else jnp.maximum(mask.sum(1, dtype=x.dtype), 1)[:, None]
            context = x.sum(1) / count
        factors = (f[...].astype(x.dtype) for f in (self.context_factor, self.token_factor))
        of_context, of_tokens = (a @ f for a, f in zip((context, x), factors, strict=True))
        scores = jnp.tanh(of_context[:, None] * of_tokens)
        scores = scores * jax.lax.rsqrt(jnp.square(scores).sum(-1, keepdims=True) + 1e-12)
        if mask is not None:
            scores = jnp.where(mask[..., None], scores, jnp.finfo(x.dtype).min)
        weights = jnp.swapaxes(jax.nn.softmax(scores, 1), 1, 2)
        return weights @ x, weights


@register_mixer("low_rank_attention")
class LowRankAttention(Mixer):
    """LAMA as a mixer: every token gets the same output, a linear map of the heads' pooled vectors.

    This is our adaptation: the paper uses it once, to pool the outputs of a recurrent encoder, which is
    :class:`LowRankPool`. It is bidirectional only: the mean is over all tokens.

    Parameters: ``pool.*`` and ``out`` (linear).
    """

    paper = (16,)

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        context: Literal["mean", "learned"] = "mean",
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        num_heads, context: options of :class:`LowRankPool`.
        use_bias: bias of the output layer.
        """
        self.pool = LowRankPool(features, num_heads, context=context, param_dtype=param_dtype, rngs=rngs)
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        init = truncated_normal(0.02)
        self.out = Linear(num_heads * features, features, use_bias=use_bias, kernel_init=init, **common)

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        found, weights = self.pool(x, tokens.mask)
        if self.sowing(Diagnostic, "attention"):
            self.sow(
                Diagnostic,
                "attention",
                jnp.broadcast_to(weights[:, :, None], (*weights.shape[:2], x.shape[1], x.shape[1])),
            )
        y = self.out(found.reshape(len(x), 1, -1).astype(x.dtype))
        return jnp.broadcast_to(y, x.shape)
