"""Compressive Transformers for Long-Range Sequence Modelling (Rae et al., ICLR 2020, arXiv:1911.05507).

Transformer-XL (:mod:`zoo.language.transformer_xl`) whose old memories are compressed instead of dropped:
:mod:`layers.attention.compressive` has the equations, the compression functions and their losses. Training adds the
auxiliary loss ``compression`` with a weight of 1; its gradient reaches only the compression function.

On enwik8, 24 layers of Transformer-XL's size with segments and memories of 768 tokens and 1152 compressed slots of 3
tokens each reach 0.97 bits per character, evaluated with 3072 slots (Transformer-XL: 0.98). The size of
``compressive_transformer_nano`` is our choice; the paper's word-level models use adaptive inputs and are not included.
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
      compressed, rate: the number of compressed slots, and the tokens that each stands for.
      compression: the compression function: "convolution", "mean", "max" or "most_used".
      compression_loss: the loss that trains a convolution: "attention" or "autoencoding"; None is "attention" for a
        convolution.
      end_to_end: whether the convolution is trained by the model's loss instead.
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
