"""Attention with universal relative positions: Your Transformer May Not be as Powerful as You Expect (Luo et al.,
NeurIPS 2022, arXiv:2205.13401), eq. 5.

    y_i = sum_j c_{j-i} softmax_j(q_i . k_j / sqrt(d) + b_{j-i}) v_j

With b alone the weights of a query sum to 1, so that a sequence of equal tokens gives equal outputs whatever b is: no
such network can tell positions apart. The factors c after the softmax end that.
"""

from __future__ import annotations

from typing import Unpack

from layers.attention.multi_head import MultiHeadAttention
from layers.attention.projected import GroupedHeadOptions
from layers.mixer import register_mixer


@register_mixer("urpe_attention")
class UniversalAttention(MultiHeadAttention):
    """Softmax attention with a learned number for each distance before the softmax and another one after it.

    It is ``attention`` with ``relative="universal"``. Each layer has tables of its own, where the authors' models have
    one for all.

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
        causal, window, options: as of :class:`MultiHeadAttention`.
        reach: greatest distance with numbers of its own; those beyond have that of the greatest.
        """
        relative = {"name": "universal", "reach": reach}
        super().__init__(features, causal=causal, window=window, relative=relative, **options)
