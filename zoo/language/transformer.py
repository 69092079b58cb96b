"""A modern decoder, the baseline of every comparison here.

    x = x + Attention(RMSNorm(x));  x = x + SwiGLU(RMSNorm(x))

with rotary positions, grouped-query attention and an optional sliding window. ``rotary=None`` uses no position encoding
at all: a causal transformer can infer the order by itself (Language Modeling with Deep Transformers, Irie et al., 2019,
arXiv:1905.04226). Sizes are our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from layers.mixer import MixerSpec, Place
from zoo.backbones.causal import Causal, CausalConfig
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class TransformerConfig(CausalConfig):
    """Hyper-parameters of the decoder.

    Attributes:
      num_kv_heads: key and value heads; None is one for each query head.
      rotary: base of the rotary embedding, or its options as in :class:`layers.position.Rotary`; None for no positions.
      window: tokens that a token attends to, itself included; None for all earlier tokens.
    """

    num_kv_heads: int | None = None
    rotary: float | Mapping[str, Any] | None = 10000.0
    window: int | None = None


class Transformer(Causal):
    """The decoder; names as in :class:`Causal`."""

    config: TransformerConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        return {
            "name": "attention",
            "num_kv_heads": c.num_kv_heads,
            "rotary": c.rotary,
            "window": c.window,
            "use_bias": False,
        }


VARIANTS: dict[str, dict[str, Any]] = {
    "transformer_nano": {"features": 128, "depth": 4, "num_heads": 4},
    "transformer_130m": {"vocab_size": 50280, "features": 768, "depth": 12, "num_heads": 12},
    "transformer_370m": {"vocab_size": 50280, "features": 1024, "depth": 24, "num_heads": 16},
    "transformer_1.3b": {"vocab_size": 50280, "features": 2048, "depth": 24, "num_heads": 32, "num_kv_heads": 8},
}

register_family("transformer", Transformer, TransformerConfig, VARIANTS, our_choice=tuple(VARIANTS))
