"""ViG-H, the pyramid of ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention (Liao et al., AAAI
2025, arXiv:2405.18425).

    image -> 3x3 convolution of stride 2, LN, GELU, 3x3 convolution of stride 2, LN -> stage 1 -> 3x3 convolution of
    stride 2, LN -> stage 2 -> ... -> stage 4 -> LN -> average pool -> linear
    block: x = x + DirectionGated(LN(x)); x = x + SwiGLU(LN(x))        (:mod:`layers.attention.direction_gated`)

There are no positions. The hidden width of SwiGLU is 8/3 of the features, rounded up to a multiple of 32. Published for
ImageNet-1k at 224: tiny 29 M parameters, 82.8 % top-1; small 50 M, 83.8 %; base 89 M, 84.2 %. ``vig_h_nano`` is our
choice; the isotropic models are in :mod:`zoo.vision.vig`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from layers.initializers import truncated_normal, variance_scaling
from layers.mixer import MixerSpec, Place
from layers.mlp import GatedMLP, gelu
from layers.norm import create_norm
from layers.patch import ConvNorm
from layers.sequential import Sequential
from zoo.backbones.pyramid import Pyramid, PyramidConfig
from zoo.naming import Naming, Split
from zoo.registry import register_family
from zoo.vision.vig import mixer_rules

# PyTorch's default initialization.
_CONV = variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True)
class ViGHConfig(PyramidConfig):
    """Hyper-parameters of ViG-H.

    Attributes:
      mlp_ratio: hidden width / features of a plain MLP with as many parameters; the gated one's hidden width is 2/3 of
        that, rounded up to a multiple of 32.
    """

    features: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 17, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: float = 4.0


class ViGH(Pyramid):
    """ViG-H; names as in :class:`Pyramid`."""

    config: ViGHConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        return "direction_gated_linear"

    def make_stem(self, *, rngs: nnx.Rngs) -> Sequential:
        c, width = self.config, self.config.features[0]
        first = self._conv(c.in_channels, width // 2, rngs, activation=gelu)
        return Sequential([first, self._conv(width // 2, width, rngs)])

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> nnx.Module:
        source, features = self.config.features[stage - 1 : stage + 1]
        return self._conv(source, features, rngs)

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        features = self._width(place)
        hidden = -(-int(features * self.config.mlp_ratio * 2 / 3) // 32) * 32
        init = truncated_normal(0.02)
        return GatedMLP(features, hidden, kernel_init=init, dropout=place.dropout, **place.dtypes, rngs=rngs)

    def block_options(self, place: Place) -> dict[str, Any]:
        return {"norm_epsilon": 1e-5}

    def make_norm(self, *, rngs: nnx.Rngs) -> Any:
        return create_norm("layer", self.config.features[-1], epsilon=1e-5, **self._common(rngs))

    def _conv(self, source: int, features: int, rngs: nnx.Rngs, **options: Any) -> ConvNorm:
        return ConvNorm(source, features, strides=2, norm="layer", kernel_init=_CONV, **options, **self._common(rngs))

    def _common(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype, "rngs": rngs}


VARIANTS: dict[str, dict[str, Any]] = {
    "vig_h_tiny": {"depths": (2, 2, 5, 2), "drop_path": 0.2},
    "vig_h_small": {"drop_path": 0.3},
    "vig_h_base": {"features": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32), "drop_path": 0.6},
    # Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels.
    "vig_h_nano": {
        "image_size": 32,
        "features": (48, 96),
        "depths": (2, 2),
        "num_heads": (2, 4),
        "mlp_ratio": 2.0,
        "drop_path": 0.05,
    },
}

# Of the authors' code.
PARAMETERS = {"vig_h_tiny": 28_600_680, "vig_h_small": 50_051_688, "vig_h_base": 88_904_360}

_BLOCK, _OURS = "layers.{s}.blocks.{b}", "stages.{s}.blocks.{b}"
RULES = {
    "vig": Naming(
        [
            *(
                (f"patch_embed.{5 * i + 2 * j}", f"stages.0.downsample.{i}.{part}")
                for i in range(2)
                for j, part in enumerate(("conv", "norm"))
            ),
            *(
                (f"layers.{stage}.downsample.{1 + 2 * j}", f"stages.{stage + 1}.downsample.{part}")
                for stage in range(3)
                for j, part in enumerate(("conv", "norm"))
            ),
            (f"{_BLOCK}.norm", f"{_OURS}.mixer_norm"),
            *mixer_rules(f"{_BLOCK}.op", f"{_OURS}.mixer"),
            (f"{_BLOCK}.norm2", f"{_OURS}.channel_norm"),
            (f"{_BLOCK}.mlp.fc1", (f"{_OURS}.channel.gate", f"{_OURS}.channel.up"), Split()),
            (f"{_BLOCK}.mlp.fc2", f"{_OURS}.channel.down"),
            ("classifier.norm", "norm"),
            ("classifier.head", "head"),
        ]
    )
}

register_family(
    "vig_h",
    ViGH,
    ViGHConfig,
    VARIANTS,
    our_choice=("vig_h_nano",),
    parameters=PARAMETERS,
    rules=RULES,
    paper=(206,),
)
