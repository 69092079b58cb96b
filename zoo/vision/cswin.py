"""CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows (Dong et al., CVPR 2022,
arXiv:2107.00652).

    image -> 7x7 convolution of stride 4, LN -> stage 1 -> 3x3 convolution of stride 2, LN -> stage 2 -> ... -> stage 4
    -> LN -> average pool -> head

    block: x = x + CrossShaped(LN(x));  x = x + MLP(LN(x))        (:mod:`layers.attention.cross_shaped`)

Stripes are 1, 2 and 7 tokens wide (1, 2 and 12 at 384 pixels) in the first three stages; the last stage attends to the
whole map. Published for ImageNet-1k at 224: tiny 22.3 M parameters, 82.8 % top-1; small 34.6 M, 83.6 %; base 77.4 M,
84.2 %, at 384 85.5 %; pretrained on ImageNet-22k large 173.3 M, 86.5 %, at 384 87.5 %.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from layers.initializers import variance_scaling
from layers.mixer import MixerSpec, Place
from layers.mlp import MLP
from layers.norm import create_norm
from layers.patch import ConvNorm
from zoo.backbones.pyramid import Pyramid, PyramidConfig
from zoo.naming import Naming, Split
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class CSWinConfig(PyramidConfig):
    """Hyper-parameters of CSWin.

    Attributes:
      stripes: width of a stripe in tokens, in each stage; None for attention to the whole map, which is also used where
        the stripe is as wide as the map at ``image_size``, as in the authors' code.
      mlp_ratio: hidden width of the MLP / features.
    """

    features: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 4, 32, 2)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    stripes: tuple[int | None, ...] = (1, 2, 7, None)
    mlp_ratio: float = 4.0


class CSWin(Pyramid):
    """CSWin; names as in :class:`Pyramid`."""

    config: CSWinConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        stage = place.stage or 0
        stripe = self.config.stripes[stage]
        return {"name": "cross_shaped", "stripe": None if stripe == self.grid_of(stage)[0] else stripe}

    def grid_of(self, stage: int) -> tuple[int, int]:
        side = self.config.image_size // (4 * 2**stage)
        return side, side

    def make_stem(self, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        return ConvNorm(c.in_channels, c.features[0], kernel_size=7, strides=4, padding=2, **self._convolution(rngs))

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> nnx.Module:
        source, features = self.config.features[stage - 1 : stage + 1]
        return ConvNorm(source, features, strides=2, **self._convolution(rngs))

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        features = self._width(place)
        return MLP(features, int(features * self.config.mlp_ratio), dropout=place.dropout, **self._common(rngs))

    def block_options(self, place: Place) -> dict[str, Any]:
        return {"norm_epsilon": 1e-5}

    def make_norm(self, *, rngs: nnx.Rngs) -> Any:
        return create_norm("layer", self.config.features[-1], epsilon=1e-5, **self._common(rngs))

    def _convolution(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"norm": "layer", "kernel_init": variance_scaling(1 / 3, "fan_in", "uniform"), **self._common(rngs)}

    def _common(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype, "rngs": rngs}


def _width(features: int, heads: tuple[int, ...], **more: Any) -> dict[str, Any]:
    return {"features": tuple(features * 2**stage for stage in range(4)), "num_heads": heads, **more}


_BASE = _width(96, (4, 8, 16, 32), drop_path=0.5)
_LARGE = _width(144, (6, 12, 24, 24), drop_path=0.5)
_384: dict[str, Any] = {"image_size": 384, "stripes": (1, 2, 12, None)}
# Stochastic depth as in the authors' commands; large, for which there is none, takes base's.
VARIANTS: dict[str, dict[str, Any]] = {
    "cswin_tiny_224": {"depths": (1, 2, 21, 1), "drop_path": 0.2},
    "cswin_small_224": {"drop_path": 0.4},
    "cswin_base_224": _BASE,
    "cswin_base_384": {**_BASE, **_384},
    "cswin_large_224": _LARGE,
    "cswin_large_384": {**_LARGE, **_384},
    # Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels.
    "cswin_nano": {
        "image_size": 32,
        "features": (48, 96),
        "depths": (2, 2),
        "num_heads": (2, 4),
        "stripes": (2, None),
        "mlp_ratio": 2.0,
        "drop_path": 0.1,
    },
}

# Of the authors' code.
PARAMETERS = {
    "cswin_tiny_224": 22_320_552,
    "cswin_small_224": 34_643_304,
    "cswin_base_224": 77_382_184,
    "cswin_base_384": 77_382_184,
    "cswin_large_224": 173_262_664,
    "cswin_large_384": 173_262_664,
}

ALIASES = {
    "cswin_tiny_224": ("CSWin_64_12211_tiny_224",),
    "cswin_small_224": ("CSWin_64_24322_small_224",),
    "cswin_base_224": ("CSWin_96_24322_base_224",),
    "cswin_base_384": ("CSWin_96_24322_base_384",),
    "cswin_large_224": ("CSWin_144_24322_large_224",),
    "cswin_large_384": ("CSWin_144_24322_large_384",),
}


def _stage(stage: int) -> list[tuple[Any, ...]]:
    """The rules of a stage, which the authors count from 1, and of the convolution before it."""
    theirs, ours = f"stage{stage + 1}.{{b}}", f"stages.{stage}.blocks.{{b}}"
    shrink = (f"merge{stage}.conv", f"merge{stage}.norm") if stage else ("stage1_conv_embed.0", "stage1_conv_embed.2")
    return [
        *zip(shrink, (f"stages.{stage}.downsample.conv", f"stages.{stage}.downsample.norm"), strict=True),
        (f"{theirs}.norm1", f"{ours}.mixer_norm"),
        (f"{theirs}.qkv", tuple(f"{ours}.mixer.{part}" for part in ("query", "key", "value")), Split()),
        (f"{theirs}.attns.{{j}}.get_v", f"{ours}.mixer.enhancement.{{j}}"),
        (f"{theirs}.proj", f"{ours}.mixer.out"),
        (f"{theirs}.norm2", f"{ours}.channel_norm"),
        (f"{theirs}.mlp.fc1", f"{ours}.channel.up"),
        (f"{theirs}.mlp.fc2", f"{ours}.channel.down"),
    ]


RULES = {"cswin": Naming([*(rule for stage in range(4) for rule in _stage(stage)), ("norm", "norm"), ("head", "head")])}

register_family(
    "cswin",
    CSWin,
    CSWinConfig,
    VARIANTS,
    our_choice=("cswin_nano",),
    parameters=PARAMETERS,
    aliases=ALIASES,
    rules=RULES,
    preprocess={"crop_fraction": 0.9},
)
