"""LongNet: Scaling Transformers to 1,000,000,000 Tokens (J. Ding et al., 2023, arXiv:2307.02486).

    x = x + DilatedAttention(LayerNorm(x));  x = x + MLP(LayerNorm(x))

with rotary positions, and a further norm inside each branch, before its last projection (Foundation Transformers,
arXiv:2210.06423). Sizes are our choice; the rates of ``longnet_125m`` divide its 12 heads, and the nano size differs
from the baseline decoder (:mod:`zoo.language.transformer`) only in its attention.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from layers.mixer import MixerSpec, Place
from layers.mlp import MLP, gelu
from zoo.backbones.causal import Causal, CausalConfig, Mlp
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class LongNetConfig(CausalConfig):
    """Hyper-parameters of LongNet.

    Attributes:
      segments, rates: as in :class:`layers.DilatedAttention`.
      inner_norm: whether the branches have inner norms; the MLP has one only where ``mlp`` is "gelu".
      rotary: base of the rotary embedding; None for no positions.
    """

    mlp: Mlp | None = "gelu"
    norm: str = "layer"
    segments: tuple[int, ...] = (2048, 4096, 8192, 16384, 32768)
    rates: tuple[int, ...] = (1, 2, 4, 8, 16)
    inner_norm: bool = True
    rotary: float | None = 10000.0


class LongNet(Causal):
    """LongNet; names as in :class:`Causal`."""

    config: LongNetConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        return {
            "name": "dilated_attention",
            "segments": c.segments,
            "rates": c.rates,
            "rotary": c.rotary,
            "inner_norm": c.inner_norm,
            "use_bias": False,
        }

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module | None:
        c = self.config
        if c.mlp != "gelu" or not c.inner_norm:
            return super().make_channel(place, rngs=rngs)
        options = {
            "dropout": c.dropout,
            "use_bias": False,
            "dtype": c.dtype,
            "param_dtype": c.param_dtype,
            "rngs": rngs,
        }
        return MLP(c.features, c.hidden or 4 * c.features, activation=gelu, norm="layer", **options)


VARIANTS: dict[str, dict[str, Any]] = {
    "longnet_nano": {
        "features": 128, "depth": 4, "num_heads": 4, "segments": (64, 128, 256), "rates": (1, 2, 4), "mlp": "swiglu",
        "norm": "rms", "inner_norm": False,
    },
    "longnet_125m": {"vocab_size": 100288, "features": 768, "depth": 12, "num_heads": 12, "rates": (1, 2, 4, 6, 12)},
    "longnet_350m": {"vocab_size": 100288, "features": 1024, "depth": 24, "num_heads": 16},
}  # fmt: skip

register_family("longnet", LongNet, LongNetConfig, VARIANTS, our_choice=tuple(VARIANTS), paper=(131,))
