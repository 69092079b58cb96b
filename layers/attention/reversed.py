"""Reversed attention: Visual Dependency Transformers: Dependency Tree Emerges from Reversed Attention (Ding et al.,
CVPR 2023, arXiv:2304.03282).

    A = softmax(Q K^T / sqrt(head_dim))        over keys, as usual
    y_i = W_o [sum_j A_ji p_j m_j v_j]         for each head

A token does not gather from the tokens it attends to but sends to them: j sends v_j to i with weight A_ji. p_j =
softmax(W_p x_j / 0.1) chooses the head that sends, and m_j = sigmoid(W_2 GELU(W_1 x_j)) is a message gate, multiplied
by those of the previous layers if blocks pass it on. The authors' code is not published. Biases, which the paper does
not mention, are left out as in F. Guan's port for timm.
"""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp

from layers.attention.projected import HeadOptions, ProjectedAttention, of_projections
from layers.linear import Linear
from layers.mixer import finite_padding, register_mixer
from layers.mlp import gelu
from layers.module import Diagnostic
from layers.tokens import Tokens
from pallas_kernels import attention, attention_weights


@register_mixer("reversed_attention")
class ReversedAttention(ProjectedAttention):
    """Attention with a transposed weight matrix: each token sends to the tokens it attends to.

    The columns of A do not sum to 1, so two passes of attention are needed, neither of which materializes a matrix of
    all pairs: the first computes the log-sum-exp l_j of row j of the logits; the second, with keys as queries, sums
    exp(q_j k_i / sqrt(head_dim) - l_j) p_j m_j v_j. The diagnostic "attention" is A_ji p_j m_j, (batch, heads, i, j).

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``head_choice``, ``message_up`` and ``message_down``
    (linear, no biases).
    """

    honors = frozenset({"mask", "segment_ids"})
    paper = (13,)

    def __init__(
        self,
        features: int,
        *,
        temperature: float = 0.1,
        cumulative: bool = False,
        **options: Unpack[HeadOptions],
    ):
        """Args:
        temperature: divisor of the logits of p.
        cumulative: blocks pass on m, float32 (batch, length), and each multiplies it by its own.
        options: as in :class:`ProjectedAttention`.
        """
        super().__init__(features, **options)
        made = of_projections(options)
        self.head_choice = Linear(features, self.num_heads, use_bias=False, **made)
        self.message_up = Linear(features, features // 2, use_bias=False, **made)
        self.message_down = Linear(features // 2, 1, use_bias=False, **made)
        self.temperature, self.shares = temperature, cumulative

    @property
    def complexity(self) -> float:
        return 2.0

    def mix(self, x: jax.Array, tokens: Tokens, /, *beside: Any) -> Any:
        x = finite_padding(x, tokens.mask)
        q, (k, v) = self.queries(x, None), self.keys_and_values(x, None)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        message = jax.nn.sigmoid(self.message_down(gelu(self.message_up(x))).astype(wide))[..., 0]
        message = message * beside[0] if self.shares else message
        sent = jax.nn.softmax(self.head_choice(x).astype(wide) / self.temperature, -1) * message[..., None]
        if self.sowing(Diagnostic, "attention"):
            weights = attention_weights(q, k, **self._seen(tokens))
            self.sow(Diagnostic, "attention", jnp.swapaxes(weights, 2, 3) * jnp.swapaxes(sent, 1, 2)[:, :, None])
        y = self.finish(self._sent(q, k, (v.astype(wide) * sent[..., None]).astype(v.dtype), tokens))
        return (y, message) if self.shares else y

    def _sent(self, q: jax.Array, k: jax.Array, values: jax.Array, tokens: Tokens) -> jax.Array:
        """sum_j A_ji values_j, with the shape of the values."""
        options = self._seen(tokens)
        _, sums = attention(q, k, values[..., :1], return_lse=True, **options)
        bias = -jnp.swapaxes(sums, 1, 2)[:, :, None]
        y, received = attention(k, q, values, bias=bias, return_lse=True, **options)
        if tokens.mask is not None:
            # Logits of padding are no part of the sums: their exponentials may overflow.
            received = jnp.where(tokens.mask[..., None], received, 0)
        return (y.astype(received.dtype) * jnp.exp(received)[..., None]).astype(values.dtype)

    @staticmethod
    def _seen(tokens: Tokens) -> dict[str, Any]:
        ids = tokens.segment_ids
        return {
            "mask": None if tokens.mask is None else tokens.mask[:, None, None],
            "query_segments": ids,
            "key_segments": ids,
        }
