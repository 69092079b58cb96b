"""Deep transformers without positions: Language Modeling with Deep Transformers (Irie et al., Interspeech 2019,
arXiv:1905.04226).

    x = word;  N x [x = x + Attention(LayerNorm(x));  x = x + W_2 relu(W_1 LayerNorm(x))];  logits = W LayerNorm(x)

Under a causal mask, later tokens attend to more tokens, which is enough to infer order: with many blocks, the model is
better without position encodings than with sinusoidal ones. The paper's models have a vocabulary of 200,000 words, 12
to 112 blocks of 512 features, 8 heads and 2048 hidden features. The exact vocabulary was not found; the size of
``deep_transformer_nano`` is our choice. ``scan=True`` compiles one block for all.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Causal, CausalConfig, Mlp
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class DeepTransformerConfig(CausalConfig):
    """Hyper-parameters of a deep transformer: those of :class:`CausalConfig` with its defaults."""

    features: int = 512
    depth: int = 24
    num_heads: int = 8
    mlp: Mlp | None = "relu"
    mlp_bias: bool = True
    norm: str = "layer"
    tied: bool = False


class DeepTransformer(Causal):
    """A deep transformer; names as in :class:`Causal`."""

    def own_mixer(self, place: Place) -> MixerSpec:
        return "attention"


VARIANTS: dict[str, dict[str, Any]] = {
    "deep_transformer_nano": {"features": 64, "depth": 24, "num_heads": 4},
    **{f"deep_transformer_{depth}": {"vocab_size": 200_000, "depth": depth} for depth in (12, 24, 42, 96, 112)},
}

register_family(
    "deep_transformer",
    DeepTransformer,
    DeepTransformerConfig,
    VARIANTS,
    our_choice=("deep_transformer_nano",),
    paper=(119,),
)
