"""Attention whose weights are functions of single logits, s_ij = q_i . k_j / sqrt(head_dim), and need not sum to 1.

    sigmoid   w_ij = sigmoid(s_ij + b),  b = -log n      Ramapuram et al., 2024 (arXiv:2409.04431), equations 2 and 3
    relu      w_ij = max(s_ij, 0) / n_i                  Guo et al., 2024 (arXiv:2410.13835), section 2.3

Without a softmax no token competes with others for weight, so a head that has nothing to say need not put its weight on
a token that means nothing, an attention sink.

Sigmoid attention: n is the length of training. It is a constant: with b = -log n the weights of a query sum to about 1
at initialization. The paper reports the accuracy of softmax attention for images, speech and language, and a kernel
whose forward pass is 17 % faster than FlashAttention-2, provided that large outputs at the start of training are
avoided: by b, and by scaling or normalizing the branch. Its practice, in the options of models here:

    images      layer_scale=1e-4, mixer={"name": "sigmoid_attention", "qk_norm": "layer"}
    language    mixer={"name": "sigmoid_attention", "relative": "alibi", "qk_norm": "layer", "use_bias": False}, or
                "rotary" in place of ALiBi; for long texts norm_order="sandwich", the paper's hybrid norm

ReLU attention: n_i is the number of tokens that query i sees. In the paper, which trains it on Bigram-Backcopy
(:mod:`tasks.backcopy`), it has neither sinks nor small value states nor large residual states at the first token.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Unpack

import jax.numpy as jnp

from layers.attention.multi_head import AttentionOptions, MultiHeadAttention
from layers.attention.projected import GroupedHeadOptions
from layers.mixer import register_mixer

LENGTH = 2048
"""n where nothing else is known: that of the authors' models of language with sigmoid attention."""


def _length(length: int | None, grid: tuple[int, int] | None) -> int:
    """n: as given, or the number of tokens of a grid.

    Raises:
      ValueError: a length below 1.
    """
    if length is not None and length < 1:
        raise ValueError(f"length is the number of tokens in training, at least 1; got {length}")
    return length or (LENGTH if grid is None else grid[0] * grid[1])


@register_mixer("sigmoid_attention")
class SigmoidAttention(MultiHeadAttention):
    """:class:`MultiHeadAttention` with sigmoid weights.

    Parameters: those of :class:`MultiHeadAttention`.
    """

    paper = (216,)

    def __init__(
        self,
        features: int,
        *,
        length: int | None = None,
        logit_bias: float | None = None,
        grid: tuple[int, int] | None = None,
        **options: Unpack[AttentionOptions],
    ):
        """Args:
          length: n, number of tokens in training; default the tokens of ``grid``, which models of images suggest, or
            2048.
          logit_bias: b; default -log n. In the authors' configuration with ALiBi, whose penalties have a similar
            effect, it is 0.
          options: as in :class:`MultiHeadAttention`; ``sinks`` needs a softmax.

        Raises:
          ValueError: ``length`` below 1, or as in :class:`MultiHeadAttention`.
        """
        bias = -math.log(_length(length, grid)) if logit_bias is None else logit_bias
        super().__init__(features, normalize="sigmoid", logit_bias=bias, **options)


@dataclasses.dataclass(frozen=True)
class ReLUShare:
    """The score function of ReLU attention. Instances compare by value: equal ones share compiled programs.

    Attributes:
      length: n, or None for the number of tokens up to the query.
      window: number of tokens that a query sees at most; None for all.
    """

    length: int | None
    window: int | None = None

    def __call__(self, logits: Any, head: Any, q: Any, k: Any) -> Any:
        weights = jnp.maximum(logits, 0)
        if self.length is not None:
            return weights / self.length
        seen = q + 1 if self.window is None else jnp.minimum(q + 1, self.window)
        return weights / seen.astype(logits.dtype)


@register_mixer("relu_attention")
class ReLUAttention(MultiHeadAttention):
    """:class:`MultiHeadAttention` with ReLU weights, divided by the number of tokens that a causal query sees, or by a
    constant number of tokens (Wortsman et al., 2023, arXiv:2309.08586).

    Parameters: those of :class:`MultiHeadAttention`.
    """

    paper = (48,)
    takes_positions = False

    def __init__(
        self,
        features: int,
        *,
        causal: bool = False,
        window: int | None = None,
        length: int | None = None,
        grid: tuple[int, int] | None = None,
        **options: Unpack[GroupedHeadOptions],
    ):
        """Args:
          window: as in :class:`MultiHeadAttention`.
          length: n if not causal, number of tokens in training; default the tokens of ``grid``, or 2048.
          options: as in :class:`MultiHeadAttention`.

        Raises:
          ValueError: ``length`` below 1, or given to causal attention.
        """
        if causal and length is not None:
            raise ValueError(f"length={length} is for attention to both sides; causal queries count what they see")
        share = ReLUShare(None, window) if causal else ReLUShare(_length(length, grid))
        super().__init__(features, causal=causal, window=window, normalize="none", score=share, **options)

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        """Without positions: tokens are counted."""
        return super().honors - {"positions"}
