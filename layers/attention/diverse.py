"""Attention diversification: Robustifying Token Attention for Vision Transformers (Guo et al., ICCV 2023,
arXiv:2303.11126), section 3.3.

    loss = mean_i cos(t(mean_j A_j), t(A_i))      A_i: weights of query i, their mean over heads; t(a) = a where a > 2/n

If all queries attend to the same few tokens, the rows of A are similar and the loss is near 1. The threshold t ignores
weights at chance level, up to 2/n with n tokens. The loss of a model is the mean over its layers.
"""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import jax
import jax.numpy as jnp

from layers.attention.multi_head import MultiHeadAttention
from layers.attention.projected import GroupedHeadOptions
from layers.mixer import register_mixer
from layers.module import AuxLoss
from pallas_kernels import attention_weights


@register_mixer("diverse_attention")
class DiverseAttention(MultiHeadAttention):
    """Softmax attention with a loss that trains different tokens to attend to different tokens.

    The loss materializes the whole weight matrix, like the authors' code, and is computed only if it is being
    collected.

    Parameters: those of :class:`MultiHeadAttention`.
    """

    supports_causal = False
    honors = frozenset({"mask", "positions"})  # type: ignore[assignment]
    refusals: ClassVar[dict[str, str]] = {"segment_ids": "its loss compares the weights of all tokens of a row"}
    paper = (29,)
    aux_losses: ClassVar[dict[str, float]] = {"attention_diversity": 1.0}

    def __init__(self, features: int, *, threshold: float = 2.0, depth: int = 1, **options: Unpack[GroupedHeadOptions]):
        """Args:
        threshold: weights up to threshold / n are set to 0 before the comparison.
        depth: number of layers of the model, over which the loss is averaged.
        options: as in :class:`MultiHeadAttention`.
        """
        super().__init__(features, **options)
        self.threshold, self.depth = threshold, depth

    def attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        positions: Any = (None, None),
        **known: Any,
    ) -> jax.Array:
        if self.sowing(AuxLoss, "attention_diversity"):
            asked = self.asked(q, k, mask=mask, positions=positions)
            loss = attention_diversity(attention_weights(q, k, **asked).mean(1), mask, threshold=self.threshold)
            self.sow(AuxLoss, "attention_diversity", loss / self.depth)
        return super().attend(q, k, v, x, mask=mask, positions=positions, **known)


def attention_diversity(weights: jax.Array, mask: jax.Array | None = None, *, threshold: float = 2.0) -> jax.Array:
    """The loss of the module's docstring, a scalar between 0 and 1.

    Args:
      weights: float32 (batch, length, length), weights of each query averaged over heads, 0 for masked keys.
      mask: bool (batch, length), True = real; n and the means count only these.
      threshold: weights up to threshold / n are set to 0 before the comparison.
    """
    real = jnp.ones(weights.shape[:2], weights.dtype) if mask is None else mask.astype(weights.dtype)
    count = jnp.maximum(real.sum(1, keepdims=True), 1)[..., None]
    weights = weights * real[..., None]
    average = weights.sum(1, keepdims=True) / count
    kept, all_kept = (jnp.where(a > threshold / count, a, 0) for a in (weights, average))
    products = jnp.sum(kept * all_kept, -1)
    # Two roots: the derivative of the root of both bounds together, 1e-32, is infinite in float32.
    cosines = products * jax.lax.rsqrt(_squares(kept)) * jax.lax.rsqrt(_squares(all_kept))
    return jnp.sum(cosines * real) / jnp.maximum(real.sum(), 1)


def _squares(a: jax.Array) -> jax.Array:
    """Squared norms along the last axis, at least 1e-16, the lower bound in PyTorch's cosine similarity."""
    return jnp.maximum(jnp.sum(jnp.square(a), -1), 1e-16)
