"""BiFormer: Vision Transformer with Bi-Level Routing Attention (Zhu et al., CVPR 2023, arXiv:2303.08810).

    image -> two 3x3 convolutions of stride 2 -> stage 1 -> 3x3 convolution of stride 2 -> stage 2 -> ... -> stage 4

    block: x = x + depthwise3x3(x);  x = x + BRA(LN(x));  x = x + MLP(LN(x))

A map is divided into 7x7 regions. Stages 1 to 3 route each region to 1, 4 and 16 regions; stage 4 attends densely.
Published for ImageNet-1k at 224: tiny 13.1 M parameters, 81.4 % top-1; small 25.5 M, 83.8 %; base 56.8 M, 84.3 %.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from layers.block import Branch
from layers.depthwise import DepthwiseConv
from layers.mixer import MixerSpec, Place
from layers.mlp import MLP
from layers.norm import create_norm
from layers.patch import ConvStem
from zoo.backbones.pyramid import Pyramid, PyramidConfig
from zoo.naming import Naming, Split
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class BiFormerConfig(PyramidConfig):
    """Hyper-parameters of BiFormer.

    Attributes:
      stem: features of the stem's convolutions, each of stride 2; the last is the first stage's width.
      regions: along each side of a map.
      topk: regions that each region attends to in each stage; None is dense attention.
      routing: "learned", or "random" as a control.
      dense_heads: heads of a dense stage.
      enhancement_size: of the depth-wise convolution that enhances the values locally.
      mlp_ratio: hidden width of the MLP / features.
    """

    stem: tuple[int, ...] = (32, 64)
    regions: int = 7
    topk: tuple[int | None, ...] = (1, 4, 16, None)
    routing: str = "learned"
    dense_heads: int = 8
    enhancement_size: int = 5
    mlp_ratio: float = 3.0
    drop_path: float = 0.1


class BiFormer(Pyramid):
    """BiFormer; names as in :class:`Pyramid`."""

    config: BiFormerConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c, topk = self.config, self.config.topk[place.stage or 0]
        if topk is None:
            heads = c.dense_heads
            # The authors' dense stage: usual scale, no bias of q, k and v, and the convolution sees the input.
            return {
                "name": "bilevel_routing",
                "topk": None,
                "num_heads": heads,
                "scale": (self._width(place) // heads) ** -0.5,
                "use_bias": False,
                "enhance": "input",
                "enhancement_size": c.enhancement_size,
            }
        return {
            "name": "bilevel_routing",
            "regions": c.regions,
            "topk": topk,
            "routing": c.routing,
            "enhancement_size": c.enhancement_size,
        }

    def make_stem(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return ConvStem(self.config.in_channels, self.config.stem, **self._common(rngs))

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        return ConvStem(c.features[stage - 1], (c.features[stage],), **self._common(rngs))

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        features = self._width(place)
        return MLP(features, int(features * self.config.mlp_ratio), dropout=place.dropout, **self._common(rngs))

    def make_branches(self, place: Place, *, rngs: nnx.Rngs) -> dict[str, nnx.Module | Branch]:
        position = DepthwiseConv(self._width(place), 3, **self._common(rngs))
        return {
            "position": Branch(position, norm=None, scale=None, drop=None),
            **super().make_branches(place, rngs=rngs),
        }

    def make_norm(self, *, rngs: nnx.Rngs) -> Any:
        return create_norm("batch", self.config.features[-1], **self._common(rngs))

    def _common(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype, "rngs": rngs}


VARIANTS: dict[str, dict[str, Any]] = {
    "biformer_tiny": {},
    "biformer_small": {"depths": (4, 4, 18, 4), "drop_path": 0.15},
    "biformer_base": {
        "depths": (4, 4, 18, 4),
        "features": (96, 192, 384, 768),
        "num_heads": (3, 6, 12, 24),
        "stem": (48, 96),
        "drop_path": 0.4,
    },
    # Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels, 4x4 regions, 4 of them attended to.
    "biformer_nano": {
        "image_size": 32,
        "stem": (24, 48),
        "features": (48, 96),
        "depths": (2, 2),
        "num_heads": (3, 6),
        "regions": 4,
        "topk": (4, 4),
        "enhancement_size": 3,
        "mlp_ratio": 2.0,
        "drop_path": 0.1,
    },
}

_QUERY_KEY_VALUE = ("mixer.query", "mixer.key", "mixer.value")


def _attention(stage: str, fused: str, out: str) -> list[tuple[Any, ...]]:
    block = f"stages.{stage}.blocks.{{j}}"
    return [
        (f"stages.{stage}.{{j}}.attn.{fused}", tuple(f"{block}.{part}" for part in _QUERY_KEY_VALUE), Split()),
        (f"stages.{stage}.{{j}}.attn.{out}", f"{block}.mixer.out"),
    ]


# The authors' names. Their dense last stage is another class, with names of its own.
RULES: dict[str, Naming] = {
    "biformer": Naming(
        [
            ("downsample_layers.0.3", "stages.0.downsample.1.conv"),
            ("downsample_layers.0.4", "stages.0.downsample.1.norm"),
            ("downsample_layers.{s}.0", "stages.{s}.downsample.0.conv"),
            ("downsample_layers.{s}.1", "stages.{s}.downsample.0.norm"),
            ("stages.{s}.{j}.pos_embed", "stages.{s}.blocks.{j}.position"),
            ("stages.{s}.{j}.norm1", "stages.{s}.blocks.{j}.mixer_norm"),
            ("stages.{s}.{j}.attn.lepe", "stages.{s}.blocks.{j}.mixer.enhancement"),
            *_attention("3", "qkv", "proj"),
            *_attention("{s}", "qkv.qkv", "wo"),
            ("stages.{s}.{j}.norm2", "stages.{s}.blocks.{j}.channel_norm"),
            ("stages.{s}.{j}.mlp.0", "stages.{s}.blocks.{j}.channel.up"),
            ("stages.{s}.{j}.mlp.3", "stages.{s}.blocks.{j}.channel.down"),
            ("norm", "norm"),
            ("head", "head"),
        ]
    )
}

# Of the authors' models, made by their code.
PARAMETERS = {"biformer_tiny": 13_142_760, "biformer_small": 25_536_232, "biformer_base": 56_804_968}

register_family(
    "biformer",
    BiFormer,
    BiFormerConfig,
    VARIANTS,
    our_choice=("biformer_nano",),
    parameters=PARAMETERS,
    rules=RULES,
    paper=(90,),
)
