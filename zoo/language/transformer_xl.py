"""Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context (Dai et al., ACL 2019, arXiv:1901.02860).

    x = sqrt(features) word
    N x [x = LayerNorm(x + Attention(x));  x = LayerNorm(x + W_2 relu(W_1 x))]
    logits = words x

Attention (:mod:`layers.attention.transformer_xl`) is over a segment of S tokens and the memory of P tokens before it,
with relative position keys. In generation a model keeps S + P tokens of each layer, however long the text is.

On enwik8, 12 layers (41M parameters) reach 1.06 bits per character and 24 layers (277M) 0.99; on WikiText-103, 16
layers (151M) reach a perplexity of 24.0. The sizes are those of the authors' scripts. Differences: u and v are separate
for each layer (their option ``untie_r``), the softmax over words is not adaptive, and the logits have no bias. The
released weights have an adaptive softmax and can't be loaded. The size of ``transformer_xl_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from layers.block import Order
from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Causal, CausalConfig, Mlp
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class TransformerXLConfig(CausalConfig):
    """Hyper-parameters of Transformer-XL.

    Attributes:
      segment, memory: S and P, tokens of a segment and of the memory before it.
      clamp: the largest distance; greater ones are clamped to it; None for no limit.
    """

    mlp: Mlp | None = "relu"
    mlp_bias: bool = True
    norm: str = "layer"
    norm_order: Order = "post"
    embedding_scale: float | Literal["sqrt"] = "sqrt"
    segment: int = 512
    memory: int = 512
    clamp: int | None = None


class TransformerXL(Causal):
    """Transformer-XL; names as in :class:`Causal`."""

    config: TransformerXLConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        return {"name": "transformer_xl", "segment": c.segment, "memory": c.memory, "clamp": c.clamp}


ENWIK8: dict[str, Any] = {
    "vocab_size": 204, "features": 1024, "depth": 24, "num_heads": 8, "hidden": 3072, "segment": 768, "memory": 768
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "transformer_xl_nano": {"features": 128, "depth": 4, "num_heads": 4, "segment": 64, "memory": 64},
    "transformer_xl_41m": {**ENWIK8, "features": 512, "depth": 12, "hidden": 2048, "segment": 512, "memory": 512},
    "transformer_xl_277m": ENWIK8,
    "transformer_xl_151m": {
        "vocab_size": 267_735, "features": 410, "depth": 16, "num_heads": 10, "hidden": 2100, "segment": 150,
        "memory": 150,
    },
}  # fmt: skip

register_family(
    "transformer_xl",
    TransformerXL,
    TransformerXLConfig,
    VARIANTS,
    our_choice=("transformer_xl_nano",),
    paper=(178,),
)
