"""Talking-heads attention: Talking-Heads Attention (Shazeer et al., 2020, arXiv:2003.02436).

    S_h = Q_h K_h^T / sqrt(head_dim)        A = softmax(P_l S)        y_h = (P_w A)_h V_h

Linear maps P_l and P_w, with biases, mix the heads before and after the softmax: for each pair of query and key, P_l
maps the h logits to h logits, and P_w the h weights to h weights. This is the variant of CaiT (Touvron et al., 2021,
arXiv:2103.17239).
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from layers.attention.projected import ProjectedAttention, RotaryHeadOptions, of_projections
from layers.linear import Linear
from layers.mixer import register_mixer
from layers.tokens import Tokens


@register_mixer("talking_heads")
class TalkingHeadsAttention(ProjectedAttention):
    """Softmax attention that mixes logits and weights across heads.

    All logits are held at once, in float32: memory is quadratic in the length.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``score_mixing`` and ``weight_mixing`` (heads, heads).
    """

    honors = frozenset({"mask", "positions", "segment_ids"})
    weighs_values = True

    def __init__(self, features: int, **options: Unpack[RotaryHeadOptions]):
        """Args:
        options: as in :class:`ProjectedAttention`.
        """
        super().__init__(features, **options)
        heads, made = self.num_heads, of_projections(options)
        made["dtype"] = jnp.promote_types(made["param_dtype"], jnp.float32)
        self.score_mixing, self.weight_mixing = Linear(heads, heads, **made), Linear(heads, heads, **made)

    @property
    def complexity(self) -> float:
        return 2.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        scores = jnp.einsum("bqhd,bkhd->bqkh", q * self.head_dim**-0.5, k, preferred_element_type=jnp.float32)
        scores, seen = self.score_mixing(scores), None
        if tokens.mask is not None:
            seen = tokens.mask[:, None]
        if (ids := tokens.segment_ids) is not None:
            same = ids[:, :, None] == ids[:, None]
            seen = same if seen is None else seen & same
        # The finite minimum keeps the softmax of a row defined when it sees no token.
        scores = scores if seen is None else jnp.where(seen[..., None], scores, jnp.finfo(scores.dtype).min)
        weights = self.weight_mixing(jax.nn.softmax(scores, axis=2))
        # The bias would give weight to masked keys.
        weights = weights if seen is None else jnp.where(seen[..., None], weights, 0)
        return jnp.einsum("bqkh,bkhd->bqhd", weights.astype(v.dtype), v)
