"""Compressive Transformers for Long-Range Sequence Modelling (Rae et al., ICLR 2020, arXiv:1911.05507).

Transformer-XL (:mod:`zoo.language.transformer_xl`) whose memories are compressed, not dropped:
:mod:`layers.attention.compressive` has the equations, the ways to compress and what they learn from. Training adds the
auxiliary loss ``compression`` with a weight of 1; from it the compression alone learns.

On enwik8 24 layers of Transformer-XL's size with segments and memories of 768 tokens and 1152 slots of 3 have 0.97 bits
a character, evaluated with 3072 slots (Transformer-XL: 0.98). ``compressive_transformer_nano`` is our choice; the
paper's models of words have adaptive inputs and are not here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from layers.attention.compressive import Compression
from layers.mixer import MixerSpec, Place
from zoo.language.transformer_xl import ENWIK8, TransformerXL, TransformerXLConfig
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class CompressiveTransformerConfig(TransformerXLConfig):
    """Hyper-parameters of the Compressive Transformer.

    Attributes:
      compressed, rate: slots, and tokens of each.
      compression: "convolution", "mean", "max" or "most_used".
      compression_loss: what a convolution learns from: "attention" or "autoencoding"; None for the first.
      end_to_end: it learns from the model's loss instead.
    """

    compressed: int = 512
    rate: int = 2
    compression: Compression = "convolution"
    compression_loss: Literal["attention", "autoencoding"] | None = None
    end_to_end: bool = False


class CompressiveTransformer(TransformerXL):
    """The Compressive Transformer; names as in :class:`zoo.backbones.causal.Causal`."""

    config: CompressiveTransformerConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        return {
            "name": "compressive_attention", "segment": c.segment, "memory": c.memory, "clamp": c.clamp,
            "compressed": c.compressed, "rate": c.rate, "compression": c.compression, "loss": c.compression_loss,
            "end_to_end": c.end_to_end,
        }  # fmt: skip


VARIANTS: dict[str, dict[str, Any]] = {
    "compressive_transformer_nano": {
        "features": 128, "depth": 4, "num_heads": 4, "segment": 64, "memory": 64, "compressed": 64
    },
    "compressive_transformer_277m": {**ENWIK8, "compressed": 1152, "rate": 3},
}  # fmt: skip

register_family(
    "compressive_transformer",
    CompressiveTransformer,
    CompressiveTransformerConfig,
    VARIANTS,
    our_choice=("compressive_transformer_nano",),
    paper=(178,),
)
