"""ConvNeXt: A ConvNet for the 2020s (Liu et al., CVPR 2022, arXiv:2201.03545).

    image -> 4x4 patches, norm -> stage 1 -> norm, 2x2 convolution of stride 2 -> stage 2 -> ... -> stage 4
          -> average pool -> norm -> head

    block: x = x + gamma * MLP(LN(depthwise7x7(x)))

Token mixing and channel mixing share one residual branch with one norm. As in the authors' code, a 2x2 convolution
drops an odd last row or column.

Published for ImageNet-1k at 224: tiny 28.6 M parameters, 82.1 % top-1; small 50.2 M, 83.1 %; base 88.6 M, 83.8 %; large
197.8 M, 84.3 %; after ImageNet-22k: base 85.8 %, large 86.6 %, xlarge 350.2 M, 87.0 %. The sizes below tiny are timm's;
those named "ols" begin with two overlapping 3x3 convolutions of stride 2.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.block import Branch
from layers.initializers import truncated_normal
from layers.linear import Conv
from layers.mixer import Mixer, MixerSpec, Place
from layers.mlp import MLP
from layers.norm import create_norm
from layers.patch import PatchEmbed
from layers.sequential import Sequential
from layers.tokens import Tokens
from zoo.backbones.pyramid import Pyramid, PyramidConfig
from zoo.naming import Naming, Rearrange
from zoo.registry import register_family
from zoo.vision.releases import parse_releases

_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig(PyramidConfig):
    """Hyper-parameters of ConvNeXt.

    Attributes:
      num_heads: for a mixer that replaces the convolution, which has no heads.
      stem: features of overlapping 3x3 convolutions of stride 2; None is 4x4 patches.
      kernel_size: of the depth-wise convolutions.
      mlp_ratio: hidden width of the MLP / features.
      layer_scale: initial value of the per-feature scale of the branches; None for no scale.
    """

    features: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    stem: tuple[int, ...] | None = None
    kernel_size: int = 7
    mlp_ratio: float = 4.0
    layer_scale: float | None = 1e-6


class ConvNeXtBranch(Mixer):
    """``channel(norm(mixer(x)))``: token mixing and channel mixing in one residual branch."""

    layouts = ("grid",)

    def __init__(self, mixer: Mixer, norm: nnx.Module, channel: nnx.Module):
        self.mixer, self.norm, self.channel = mixer, norm, channel

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return self.mixer.honors

    @property
    def refusals(self) -> Mapping[str, str]:  # type: ignore[override]
        return self.mixer.refusals

    @property
    def complexity(self) -> float:
        return self.mixer.complexity

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        return self.channel(self.norm(self.mixer(x, tokens)))


class ConvNeXt(Pyramid):
    """ConvNeXt; names as in :class:`Pyramid`. A user's mixer replaces the depth-wise convolution."""

    config: ConvNeXtConfig

    def make_stem(self, *, rngs: nnx.Rngs) -> Sequential:
        c, common = self.config, self._common(rngs)
        if c.stem is None:
            return Sequential([PatchEmbed(4, c.in_channels, c.features[0], **common), self._norm(c.features[0], rngs)])
        pairs = itertools.pairwise((c.in_channels, *c.stem))
        return Sequential(
            [
                *(_halving(source, features, 3, 1, **common) for source, features in pairs),
                self._norm(c.features[0], rngs),
            ]
        )

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> Sequential:
        source, features = self.config.features[stage - 1 : stage + 1]
        return Sequential([self._norm(source, rngs), _halving(source, features, 2, 0, **self._common(rngs))])

    def own_mixer(self, place: Place) -> MixerSpec:
        return {"name": "depthwise_convolution", "kernel_size": self.config.kernel_size}

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        features = self._width(place)
        return MLP(features, int(features * self.config.mlp_ratio), dropout=place.dropout, **self._common(rngs))

    def make_branches(self, place: Place, *, rngs: nnx.Rngs) -> dict[str, nnx.Module | Branch]:
        mixer, channel = self.make_mixer(place, rngs=rngs), self.make_channel(place, rngs=rngs)
        return {"mixer": ConvNeXtBranch(mixer, self._norm(self._width(place), rngs), channel)}

    def block_options(self, place: Place) -> dict[str, Any]:
        return {"norm": None, "layer_scale": self.config.layer_scale}

    def make_norm(self, *, rngs: nnx.Rngs) -> Any:
        return self._norm(self.config.features[-1], rngs)

    def pool(self, x: jax.Array) -> jax.Array:
        return self.norm(jnp.mean(x, axis=(1, 2)))

    def _norm(self, features: int, rngs: nnx.Rngs) -> Any:
        return create_norm("layer", features, epsilon=_EPSILON, **self._common(rngs))

    def _common(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype, "rngs": rngs}


def _halving(source: int, features: int, size: int, padding: int, **common: Any) -> Conv:
    """A convolution of stride 2."""
    return Conv(
        source, features, (size, size), strides=2, padding=padding, kernel_init=truncated_normal(0.02), **common
    )


def _size(features: int, depths: tuple[int, ...], *, head_dim: int = 32, **more: Any) -> dict[str, Any]:
    widths = tuple(features * 2**stage for stage in range(4))
    return {"features": widths, "num_heads": tuple(width // head_dim for width in widths), "depths": depths, **more}


# timm's, whose MLPs are 1x1 convolutions in its files.
_SMALL = {
    "convnext_atto": _size(40, (2, 2, 6, 2), head_dim=20),
    "convnext_atto_ols": _size(40, (2, 2, 6, 2), head_dim=20, stem=(24, 40)),
    "convnext_femto": _size(48, (2, 2, 6, 2), head_dim=24),
    "convnext_femto_ols": _size(48, (2, 2, 6, 2), head_dim=24, stem=(24, 48)),
    "convnext_pico": _size(64, (2, 2, 6, 2)),
    "convnext_pico_ols": _size(64, (2, 2, 6, 2), stem=(32, 64)),
    "convnext_nano": _size(80, (2, 2, 8, 2), head_dim=20),
    "convnext_nano_ols": _size(80, (2, 2, 8, 2), head_dim=20, stem=(80, 80)),
}
# The authors'. Stochastic depth as in their ImageNet-1k recipes; xlarge has none there, and takes large's.
_AUTHORS = {
    "convnext_tiny": _size(96, (3, 3, 9, 3), drop_path=0.1),
    "convnext_small": _size(96, (3, 3, 27, 3), drop_path=0.4),
    "convnext_base": _size(128, (3, 3, 27, 3), drop_path=0.5),
    "convnext_large": _size(192, (3, 3, 27, 3), drop_path=0.5),
    "convnext_xlarge": _size(256, (3, 3, 27, 3), drop_path=0.5),
    # Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels. timm's nano is 15.6 M parameters.
    "convnext_mini": {
        "image_size": 32,
        "features": (48, 96),
        "depths": (2, 2),
        "num_heads": (3, 6),
        "mlp_ratio": 2.0,
        "drop_path": 0.1,
    },
}

RELEASES = parse_releases("""
convnext_atto: d2_in1k 1000 imagenet 0.875
convnext_atto_ols: a2_in1k 1000 imagenet 0.875
convnext_femto: d1_in1k 1000 imagenet 0.875
convnext_femto_ols: d1_in1k 1000 imagenet 0.875
convnext_pico: d1_in1k 1000 imagenet 0.875
convnext_pico_ols: d1_in1k 1000 imagenet 0.95
convnext_nano: in12k_ft_in1k 1000 imagenet 0.95; d1h_in1k 1000 imagenet 0.95
convnext_nano: r384_in12k_ft_in1k 1000 imagenet 1.0 384px; in12k 11821 imagenet 0.95
convnext_nano: r384_in12k 11821 imagenet 1.0 384px; r384_ad_in12k 11821 imagenet 1.0 384px
convnext_nano_ols: d1h_in1k 1000 imagenet 0.95
convnext_tiny: in12k_ft_in1k 1000 imagenet 0.95; in12k_ft_in1k_384 1000 imagenet 1.0 squash 384px
convnext_tiny: in12k 11821 imagenet 0.95; fb_in22k_ft_in1k 1000 imagenet 0.875; fb_in1k 1000 imagenet 0.875
convnext_tiny: fb_in22k_ft_in1k_384 1000 imagenet 1.0 squash 384px; fb_in22k 21841 imagenet 0.875
convnext_tiny: dinov3_lvd1689m 0 imagenet 1.0 dinov3-license
convnext_tiny: eupe_lvd1689m 0 imagenet 1.0 fair-noncommercial-research-license 256px
convnext_small: in12k_ft_in1k 1000 imagenet 0.95; in12k_ft_in1k_384 1000 imagenet 1.0 squash 384px
convnext_small: in12k 11821 imagenet 0.95; fb_in22k_ft_in1k 1000 imagenet 0.875; fb_in1k 1000 imagenet 0.875
convnext_small: fb_in22k_ft_in1k_384 1000 imagenet 1.0 squash 384px; fb_in22k 21841 imagenet 0.875
convnext_small: dinov3_lvd1689m 0 imagenet 1.0 dinov3-license
convnext_small: eupe_lvd1689m 0 imagenet 1.0 fair-noncommercial-research-license 256px
convnext_base: fb_in22k_ft_in1k 1000 imagenet 0.875; fb_in1k 1000 imagenet 0.875
convnext_base: fb_in22k_ft_in1k_384 1000 imagenet 1.0 squash 384px; fb_in22k 21841 imagenet 0.875
convnext_base: clip_laion2b_augreg_ft_in12k_in1k 1000 clip 1.0 256px
convnext_base: clip_laion2b_augreg_ft_in12k_in1k_384 1000 clip 1.0 squash 384px
convnext_base: clip_laion2b_augreg_ft_in1k 1000 clip 1.0 256px; clip_laiona_augreg_ft_in1k_384 1000 clip 1.0 384px
convnext_base: clip_laion2b_augreg_ft_in12k 11821 clip 1.0 256px; clip_laion2b 640 clip 1.0 256px
convnext_base: clip_laion2b_augreg 640 clip 1.0 256px; clip_laiona 640 clip 1.0 256px
convnext_base: clip_laiona_320 640 clip 1.0 320px; clip_laiona_augreg_320 640 clip 1.0 320px
convnext_base: dinov3_lvd1689m 0 imagenet 1.0 dinov3-license
convnext_base: eupe_lvd1689m 0 imagenet 1.0 fair-noncommercial-research-license 256px
convnext_large: fb_in22k_ft_in1k 1000 imagenet 0.875; fb_in1k 1000 imagenet 0.875
convnext_large: fb_in22k_ft_in1k_384 1000 imagenet 1.0 squash 384px; fb_in22k 21841 imagenet 0.875
convnext_large: dinov3_lvd1689m 0 imagenet 1.0 dinov3-license
convnext_xlarge: fb_in22k_ft_in1k 1000 imagenet 0.875; fb_in22k_ft_in1k_384 1000 imagenet 1.0 squash 384px
convnext_xlarge: fb_in22k 21841 imagenet 0.875
""")

# Of timm 1.0.31.
PARAMETERS = {
    "convnext_atto": 3_695_520,
    "convnext_atto_ols": 3_702_912,
    "convnext_femto": 5_217_784,
    "convnext_femto_ols": 5_226_520,
    "convnext_pico": 9_045_672,
    "convnext_pico_ols": 9_061_928,
    "convnext_nano": 15_593_560,
    "convnext_nano_ols": 15_649_560,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
    "convnext_xlarge": 350_196_968,
}

_BLOCK = "stages.{s}.blocks.{b}"


def _timm(*mlp: Rearrange) -> Naming:
    """timm's names; ``mlp`` are the operations from its MLPs' weights to ours, if not the usual transposition."""
    return Naming(
        [
            ("stem.{i}", "stages.0.downsample.{i}"),
            ("stages.{s}.downsample.{i}", "stages.{s}.downsample.{i}"),
            (f"{_BLOCK}.conv_dw", f"{_BLOCK}.mixer.mixer.conv"),
            (f"{_BLOCK}.norm", f"{_BLOCK}.mixer.norm"),
            *(
                (f"{_BLOCK}.mlp.{fc}.weight", f"{_BLOCK}.mixer.channel.{ours}.kernel", *mlp)
                for fc, ours in (("fc1", "up"), ("fc2", "down"))
                if mlp
            ),
            (f"{_BLOCK}.mlp.fc1", f"{_BLOCK}.mixer.channel.up"),
            (f"{_BLOCK}.mlp.fc2", f"{_BLOCK}.mixer.channel.down"),
            (f"{_BLOCK}.gamma", f"{_BLOCK}.mixer_scale.scale"),
            ("head.norm", "norm"),
            ("head.fc", "head"),
        ]
    )


RULES: dict[str, Naming] = {
    "timm": _timm(),
    "facebook": Naming(
        [
            ("downsample_layers.{s}.{i}", "stages.{s}.downsample.{i}"),
            ("stages.{s}.{b}.dwconv", f"{_BLOCK}.mixer.mixer.conv"),
            ("stages.{s}.{b}.norm", f"{_BLOCK}.mixer.norm"),
            ("stages.{s}.{b}.pwconv1", f"{_BLOCK}.mixer.channel.up"),
            ("stages.{s}.{b}.pwconv2", f"{_BLOCK}.mixer.channel.down"),
            ("stages.{s}.{b}.gamma", f"{_BLOCK}.mixer_scale.scale"),
            ("norm", "norm"),
            ("head", "head"),
        ]
    ),
}
SMALL_RULES: dict[str, Naming] = {"timm": _timm(Rearrange("o i 1 1 -> i o"))}

for _sizes, _rules in ((_AUTHORS, RULES), (_SMALL, SMALL_RULES)):
    register_family(
        "convnext",
        ConvNeXt,
        ConvNeXtConfig,
        _sizes,
        our_choice=("convnext_mini",),
        parameters=PARAMETERS,
        releases=RELEASES,
        rules=_rules,
    )
