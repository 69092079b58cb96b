"""LongNet: Scaling Transformers to 1,000,000,000 Tokens (J. Ding et al., 2023, arXiv:2307.02486).

    x = x + DilatedAttention(LayerNorm(x));  x = x + MLP(LayerNorm(x))

with rotary positions, and norms inside both branches too (Foundation Transformers, arXiv:2210.06423):
before the output projection of attention here. Sizes are our choice; the segments and rates of
``longnet_125m`` grow as in :mod:`layers.sparse.dilated`, with rates that divide its 12 heads.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from layers.mixer import MixerSpec
from zoo.backbones.causal import Causal, CausalConfig
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class LongNetConfig(CausalConfig):
    """Hyper-parameters of LongNet.

    Attributes:
      segments, rates, inner_norm: as in :class:`layers.DilatedAttention`.
      rotary: base of the rotary embedding, None for no positions.
    """

    mlp: Any = "gelu"
    norm: str = "layer"
    segments: tuple[int, ...] = (2048, 4096, 8192, 16384, 32768)
    rates: tuple[int, ...] = (1, 2, 4, 8, 16)
    inner_norm: bool = True
    rotary: float | None = 10000.0


class LongNet(Causal):
    """LongNet; names as in :class:`Causal`."""

    config: LongNetConfig

    def own_mixer(self, index: int) -> MixerSpec:
        c = self.config
        return {"name": "dilated_attention", "segments": c.segments, "rates": c.rates, "rotary": c.rotary, "inner_norm": c.inner_norm, "use_bias": False}


VARIANTS: dict[str, dict[str, Any]] = {
    "longnet_nano": {"features": 128, "depth": 4, "num_heads": 4, "segments": (64, 128, 256), "rates": (1, 2, 4)},
    "longnet_125m": {"vocab_size": 100288, "features": 768, "depth": 12, "num_heads": 12, "rates": (1, 2, 4, 6, 12)},
    "longnet_350m": {"vocab_size": 100288, "features": 1024, "depth": 24, "num_heads": 16},
}

register_family("longnet", LongNet, LongNetConfig, VARIANTS, our_choice=tuple(VARIANTS), paper=(131,))
