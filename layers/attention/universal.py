"""Attention with universal relative positions: Your Transformer May Not be as Powerful as You Expect (Luo et al.,
NeurIPS 2022, arXiv:2205.13401), eq. 5.

    y_i = sum_j c_{j-i} softmax_j(q_i . k_j / sqrt(d) + b_{j-i}) v_j

With b alone the weights of a query sum to 1, so a sequence of identical tokens has identical outputs for any b: such a
network cannot tell positions apart. The factors c after the softmax remove this limitation.
"""

from __future__ import annotations

from typing import Unpack

from layers.attention.multi_head import MultiHeadAttention
from layers.attention.projected import GroupedHeadOptions
from layers.mixer import register_mixer


@register_mixer("urpe_attention")
class UniversalAttention(MultiHeadAttention):
    """Softmax attention with a learned bias per distance before the softmax and a learned factor after it.

    It is ``attention`` with ``relative="universal"``. Each layer has its own tables; the authors' models share one
    between all layers.

    Parameters: those of :class:`MultiHeadAttention`, with ``relative.table`` and ``relative.factor`` (heads, span).
    """

    paper = (1,)

    def __init__(
        self,
        features: int,
        *,
        causal: bool = False,
        window: int | None = None,
        reach: int = 128,
        **options: Unpack[GroupedHeadOptions],
    ):
        """Args:
        causal, window, options: as in :class:`MultiHeadAttention`.
        reach: greatest distance with its own bias and factor; greater ones are clipped to it.
        """
        relative = {"name": "universal", "reach": reach}
        super().__init__(features, causal=causal, window=window, relative=relative, **options)
