"""NAT and DiNAT: Neighborhood Attention Transformer (Hassani et al., CVPR 2023, arXiv:2204.07143), and Dilated
Neighborhood Attention Transformer (Hassani, Shi, 2022, arXiv:2209.15001).

    image -> two 3x3 convolutions of stride 2, LN -> stage 1 -> 3x3 convolution of stride 2, LN -> stage 2 -> ... ->
    stage 4 -> LN -> average pool -> head

    block: x = x + NeighborhoodAttention(LN(x));  x = x + MLP(LN(x))        windows of 7x7 tokens, with a bias by offset

In DiNAT the windows of every second block are dilated, to about the whole map in the first stages. DiNAT_s is Swin with
this attention in place of windows. Published for ImageNet-1k at 224: NAT mini 20.0 M parameters, 81.8 % top-1; tiny
27.9 M, 83.2 %; small 50.7 M, 83.7 %; base 89.8 M, 84.3 %; DiNAT of the same sizes 81.8, 82.7, 83.8 and 84.4 %, large
200.9 M, pretrained on ImageNet-22k, 86.6 %, at 384 87.4 %, with windows of 11x11 87.5 %; DiNAT_s tiny to base 81.8,
83.5 and 83.8 %, large 86.5 %, at 384 87.4 %.

Where a map is smaller than a window, our windows are the whole map; the authors pad the map with zeros that are
attended to. No published size has such maps at its own resolution.
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
from layers.sequential import Sequential
from zoo.backbones.pyramid import Pyramid, PyramidConfig
from zoo.naming import Naming, Split
from zoo.registry import freeze, register_family
from zoo.vision import swin
from zoo.vision.agent import in_swin
from zoo.vision.swin import Swin, SwinConfig


@dataclasses.dataclass(frozen=True)
class NATConfig(PyramidConfig):
    """Hyper-parameters of NAT.

    Attributes:
      window: tokens along each side of a neighborhood.
      dilations: of the neighborhoods in every second block of each stage, starting with its second block.
      mlp_ratio: hidden width of the MLP / features.
      layer_scale: initial value of the per-feature scale of the branches; None for no scale.
    """

    features: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (3, 4, 18, 5)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    window: int = 7
    dilations: tuple[int, ...] = (1, 1, 1, 1)
    mlp_ratio: float = 3.0
    layer_scale: float | None = None


class NAT(Pyramid):
    """NAT and DiNAT; names as in :class:`Pyramid`."""

    config: NATConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        return neighborhood(c.window, c.dilations[place.stage or 0], place.index or 0)

    def make_stem(self, *, rngs: nnx.Rngs) -> Sequential:
        c, width = self.config, self.config.features[0]
        options = self._convolution(rngs)
        first = ConvNorm(c.in_channels, width // 2, norm=None, **options)
        return Sequential([first, ConvNorm(width // 2, width, norm="layer", **options)])

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> nnx.Module:
        source, features = self.config.features[stage - 1 : stage + 1]
        return ConvNorm(source, features, norm="layer", use_bias=False, **self._convolution(rngs))

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        features = self._width(place)
        return MLP(features, int(features * self.config.mlp_ratio), dropout=place.dropout, **self._common(rngs))

    def block_options(self, place: Place) -> dict[str, Any]:
        return {"norm_epsilon": 1e-5, "layer_scale": self.config.layer_scale}

    def make_norm(self, *, rngs: nnx.Rngs) -> Any:
        return create_norm("layer", self.config.features[-1], epsilon=1e-5, **self._common(rngs))

    def _convolution(self, rngs: nnx.Rngs) -> dict[str, Any]:
        init = variance_scaling(1 / 3, "fan_in", "uniform")
        return {"strides": 2, "kernel_init": init, **self._common(rngs)}

    def _common(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype, "rngs": rngs}


def neighborhood(window: int, dilation: int, index: int) -> dict[str, Any]:
    """The attention of block ``index`` of a stage: dilated in every second one."""
    return {"name": "neighborhood", "window": window, "dilation": dilation if index % 2 else 1, "bias": True}


def _width(features: int, mlp_ratio: float, drop_path: float, **more: Any) -> dict[str, Any]:
    widths = tuple(features * 2**stage for stage in range(4))
    heads = tuple(width // 32 for width in widths)
    return {"features": widths, "num_heads": heads, "mlp_ratio": mlp_ratio, "drop_path": drop_path, **more}


def _dinat_s(features: int, depth: int, drop_path: float, dilations: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Swin's size of ``features``, with dilated neighborhoods."""
    size = swin.published_size(features, depth, drop_path)
    blocks = ((stage, index) for stage, count in enumerate(size["depths"]) for index in range(count))
    pattern = {f"{stage}.{index}": neighborhood(7, dilations[stage], index) for stage, index in blocks}
    return {**size, "pattern": freeze(pattern), **more}


_224, _384 = (8, 4, 2, 1), (13, 6, 3, 1)
_LARGE = _width(192, 2, 0.35)
_DIM_21K = {"num_classes": 21841, "drop_path": 0.2}

# Stochastic depth as in the authors' code.
VARIANTS: dict[str, dict[str, Any]] = {
    "nat_mini": _width(64, 3, 0.2, depths=(3, 4, 6, 5)),
    "nat_tiny": _width(64, 3, 0.2),
    "nat_small": _width(96, 2, 0.3, layer_scale=1e-5),
    "nat_base": _width(128, 2, 0.5, layer_scale=1e-5),
    "dinat_mini": _width(64, 3, 0.2, depths=(3, 4, 6, 5), dilations=_224),
    "dinat_tiny": _width(64, 3, 0.2, dilations=_224),
    "dinat_small": _width(96, 2, 0.3, dilations=_224),
    "dinat_base": _width(128, 2, 0.5, layer_scale=1e-5, dilations=_224),
    "dinat_large": {**_LARGE, "dilations": _224},
    "dinat_large_384": {**_LARGE, "dilations": _384, "image_size": 384},
    "dinat_large_384_11x11": {**_LARGE, "dilations": _224, "window": 11, "image_size": 384},
    "dinat_large_21k": {**_LARGE, **_DIM_21K, "dilations": _224},
    "dinat_large_21k_11x11": {**_LARGE, **_DIM_21K, "dilations": _224, "window": 11},
    # Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels, in neighborhoods of 3x3, dilated to all of 8x8.
    "dinat_nano": {
        "image_size": 32,
        "features": (48, 96),
        "depths": (2, 2),
        "num_heads": (3, 6),
        "window": 3,
        "dilations": (2, 1),
        "mlp_ratio": 2.0,
        "drop_path": 0.1,
    },
}
SWIN: dict[str, dict[str, Any]] = {
    "dinat_s_tiny": _dinat_s(96, 6, 0.2, _224),
    "dinat_s_small": _dinat_s(96, 18, 0.3, _224),
    "dinat_s_base": _dinat_s(128, 18, 0.5, _224),
    "dinat_s_large": _dinat_s(192, 18, 0.35, _224),
    "dinat_s_large_384": _dinat_s(192, 18, 0.35, _384, image_size=384),
    "dinat_s_large_21k": _dinat_s(192, 18, 0.2, _224, num_classes=21841),
}

# Of the authors' code. It does not state the number of classes of ImageNet-22k; ours is Swin's.
PARAMETERS = {
    "nat_mini": 19_984_174,
    "nat_tiny": 27_901_582,
    "nat_small": 50_743_297,
    "nat_base": 89_769_652,
    "dinat_mini": 19_984_174,
    "dinat_tiny": 27_901_582,
    "dinat_small": 50_719_681,
    "dinat_base": 89_769_652,
    "dinat_large": 200_943_514,
    "dinat_large_384": 200_943_514,
    "dinat_large_384_11x11": 201_144_250,
    "dinat_large_21k": 232_976_131,
    "dinat_large_21k_11x11": 233_176_867,
    "dinat_s_tiny": 28_288_354,
    "dinat_s_small": 49_606_258,
    "dinat_s_base": 87_768_224,
    "dinat_s_large": 196_532_476,
    "dinat_s_large_384": 196_532_476,
    "dinat_s_large_21k": 228_565_093,
}

_BLOCK, _OURS = "levels.{s}.blocks.{b}", "stages.{s}.blocks.{b}"
_PARTS = tuple(f"{_OURS}.mixer.{part}" for part in ("query", "key", "value"))
RULES = {
    "nat": Naming(
        [
            ("patch_embed.proj.{i}", "stages.0.downsample.{i}.conv"),
            ("patch_embed.norm", "stages.0.downsample.1.norm"),
            # The convolution between two stages belongs to the first of them.
            *(
                (f"levels.{stage}.downsample.{theirs}", f"stages.{stage + 1}.downsample.{ours}")
                for stage in range(3)
                for theirs, ours in (("reduction", "conv"), ("norm", "norm"))
            ),
            (f"{_BLOCK}.norm1", f"{_OURS}.mixer_norm"),
            (f"{_BLOCK}.attn.qkv", _PARTS, Split()),
            (f"{_BLOCK}.attn.rpb", f"{_OURS}.mixer.bias"),
            (f"{_BLOCK}.attn.proj", f"{_OURS}.mixer.out"),
            (f"{_BLOCK}.norm2", f"{_OURS}.channel_norm"),
            (f"{_BLOCK}.mlp.fc1", f"{_OURS}.channel.up"),
            (f"{_BLOCK}.mlp.fc2", f"{_OURS}.channel.down"),
            (f"{_BLOCK}.gamma1", f"{_OURS}.mixer_scale.scale"),
            (f"{_BLOCK}.gamma2", f"{_OURS}.channel_scale.scale"),
            ("norm", "norm"),
            ("head", "head"),
        ]
    )
}

_COMMON: dict[str, Any] = {"parameters": PARAMETERS, "paper": (218,)}
register_family("nat", NAT, NATConfig, VARIANTS, our_choice=("dinat_nano",), rules=RULES, **_COMMON)
register_family("nat", Swin, SwinConfig, SWIN, rules=in_swin([("rpb", "bias")]), **_COMMON)
