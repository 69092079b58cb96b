"""FocalNet: Focal Modulation Networks (Yang et al., NeurIPS 2022, arXiv:2203.11926).

    image -> 4x4 convolution of stride 4 -> LN -> stage 1 -> 2x2 convolution of stride 2 -> LN -> stage 2 -> ... ->
    stage 4 -> LN -> mean

    block: x = x + FocalModulation(LN(x));  x = x + MLP(LN(x))

"srf" models have the kernels 3 and 5, "lrf" ones 3, 5 and 7. The large models, pretrained on ImageNet-22k, have "fl3"
and "fl4" levels, convolutions that overlap (7x7 of stride 4, 3x3 of stride 2), the norm after a branch, with layer
scale, and the huge ones a norm in the modulation too. Published for ImageNet-1k at 224 (srf / lrf): tiny 28.4 / 28.6 M
parameters, 82.1 / 82.3 % top-1; small 49.9 / 50.3 M, 83.4 / 83.5 %; base 88.1 / 88.7 M, 83.7 / 83.9 %.

The authors' configuration of large_fl4 divides the modulator by the number of levels; timm's, for the same weights,
does not. ``normalize_modulator=True`` does; it is off by default, as in timm, whose file is the listed one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from layers.block import Order
from layers.initializers import truncated_normal, variance_scaling
from layers.mixer import MixerSpec, Place
from layers.mlp import MLP
from layers.norm import create_norm
from layers.patch import ConvNorm
from zoo.backbones.pyramid import Pyramid, PyramidConfig
from zoo.naming import Each, Naming, Rearrange, Split
from zoo.registry import register_family
from zoo.vision.releases import parse_releases


@dataclasses.dataclass(frozen=True)
class FocalNetConfig(PyramidConfig):
    """Hyper-parameters of FocalNet.

    Attributes:
      num_heads: for a mixer that replaces the modulation, which has no heads.
      levels, windows: of each stage's modulation: convolutions, and the size of the first one's kernel.
      normalize_modulator, modulation_norm: ``normalize`` and ``inner_norm`` of :class:`layers.FocalModulation`.
      overlap: whether the convolutions of the stem and between stages are larger than their strides.
      norm_order: of the blocks, "pre" or "res_post".
      layer_scale: initial value of the per-feature scale of the branches; None for no scale.
      mlp_ratio: hidden width of the MLP / features.
    """

    features: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    levels: tuple[int, ...] = (2, 2, 2, 2)
    windows: tuple[int, ...] = (3, 3, 3, 3)
    normalize_modulator: bool = False
    modulation_norm: bool = False
    overlap: bool = False
    norm_order: Order = "pre"
    layer_scale: float | None = None
    mlp_ratio: float = 4.0


class FocalNet(Pyramid):
    """FocalNet; names as in :class:`Pyramid`."""

    config: FocalNetConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c, stage = self.config, place.stage or 0
        options = {"normalize": c.normalize_modulator, "inner_norm": c.modulation_norm}
        sizes = {"levels": c.levels[stage], "window": c.windows[stage]}
        return {"name": "focal_modulation", **sizes, **options, "kernel_init": truncated_normal(0.02)}

    def make_stem(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return self._shrink(self.config.in_channels, 0, 4, rngs)

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> nnx.Module:
        return self._shrink(self.config.features[stage - 1], stage, 2, rngs)

    def _shrink(self, source: int, stage: int, strides: int, rngs: nnx.Rngs) -> nnx.Module:
        size, padding = {4: (7, 2), 2: (3, 1)}[strides] if self.config.overlap else (strides, 0)
        options: dict[str, Any] = {
            "norm": "layer",
            "kernel_init": variance_scaling(1 / 3, "fan_in", "uniform"),
            **self._common(rngs),
        }
        return ConvNorm(
            source, self.config.features[stage], kernel_size=size, strides=strides, padding=padding, **options
        )

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        features = self._width(place)
        return MLP(features, int(features * self.config.mlp_ratio), dropout=place.dropout, **self._common(rngs))

    def block_options(self, place: Place) -> dict[str, Any]:
        return {"order": self.config.norm_order, "norm_epsilon": 1e-5, "layer_scale": self.config.layer_scale}

    def make_norm(self, *, rngs: nnx.Rngs) -> Any:
        return create_norm("layer", self.config.features[-1], epsilon=1e-5, **self._common(rngs))

    def _common(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype, "rngs": rngs}


def _width(features: int) -> dict[str, Any]:
    widths = tuple(features * 2**stage for stage in range(4))
    return {"features": widths, "num_heads": tuple(width // 32 for width in widths)}


_LEVELS: dict[str, dict[str, Any]] = {
    "srf": {},
    "lrf": {"levels": (3, 3, 3, 3)},
    "fl3": {"levels": (3, 3, 3, 3), "windows": (5, 5, 5, 5)},
    "fl4": {"levels": (4, 4, 4, 4)},
}
_DEEP = {"depths": (2, 2, 18, 2)}
# Stochastic depth as in the authors' configurations.
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"drop_path": 0.2},
    "small": {**_DEEP, "drop_path": 0.3},
    "base": {**_width(128), **_DEEP, "drop_path": 0.5},
}
_LARGE = {
    **_DEEP,
    "drop_path": 0.5,
    "overlap": True,
    "norm_order": "res_post",
    "layer_scale": 1e-4,
    "num_classes": 21842,
}
_LARGE_SIZES: dict[str, dict[str, Any]] = {
    "large": {**_LARGE, **_width(192), "image_size": 384},
    "xlarge": {**_LARGE, **_width(256), "image_size": 384},
    "huge": {**_LARGE, **_width(352), "modulation_norm": True},
}

VARIANTS = {
    f"focalnet_{size}_{levels}": {**_SIZES[size], **_LEVELS[levels]} for size in _SIZES for levels in ("srf", "lrf")
}
LARGE_VARIANTS = {
    f"focalnet_{size}_{levels}": {**_LARGE_SIZES[size], **_LEVELS[levels]}
    for size in _LARGE_SIZES
    for levels in ("fl3", "fl4")
}
LARGE_VARIANTS["focalnet_huge_fl3"]["windows"] = (3, 3, 3, 3)
LARGE_VARIANTS["focalnet_huge_fl4"]["num_classes"] = 0  # released without a head

# Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels.
VARIANTS["focalnet_nano"] = {
    "image_size": 32,
    "features": (48, 96),
    "depths": (2, 2),
    "num_heads": (3, 6),
    "mlp_ratio": 2.0,
    "drop_path": 0.1,
}

RELEASES = parse_releases("""
focalnet_tiny_srf: ms_in1k 1000 imagenet 0.9 mit
focalnet_tiny_lrf: ms_in1k 1000 imagenet 0.9 mit
focalnet_small_srf: ms_in1k 1000 imagenet 0.9 mit
focalnet_small_lrf: ms_in1k 1000 imagenet 0.9 mit
focalnet_base_srf: ms_in1k 1000 imagenet 0.9 mit
focalnet_base_lrf: ms_in1k 1000 imagenet 0.9 mit
focalnet_large_fl3: ms_in22k 21842 imagenet 1.0 mit
focalnet_large_fl4: ms_in22k 21842 imagenet 1.0 mit
focalnet_xlarge_fl3: ms_in22k 21842 imagenet 1.0 mit
focalnet_xlarge_fl4: ms_in22k 21842 imagenet 1.0 mit
focalnet_huge_fl3: ms_in22k 21842 imagenet 0.9 mit
focalnet_huge_fl4: ms_in22k 0 imagenet 0.9 mit
""")

# Of timm 1.0.31.
PARAMETERS = {
    "focalnet_tiny_srf": 28_427_116,
    "focalnet_tiny_lrf": 28_647_928,
    "focalnet_small_srf": 49_891_216,
    "focalnet_small_lrf": 50_342_440,
    "focalnet_base_srf": 88_148_144,
    "focalnet_base_lrf": 88_749_768,
    "focalnet_large_fl3": 239_134_898,
    "focalnet_large_fl4": 239_315_402,
    "focalnet_xlarge_fl3": 408_787_378,
    "focalnet_xlarge_fl4": 409_028_042,
    "focalnet_huge_fl3": 745_276_338,
    "focalnet_huge_fl4": 686_460_664,
}

_BLOCK = ("layers.{s}.blocks.{b}", "stages.{s}.blocks.{b}")
_PARTS = ("query", "context", "gates")


def _linear(theirs: str, ours: str, pointwise: bool) -> list[tuple[Any, ...]]:
    """A linear layer of ours, which in files is a linear layer too or, with ``pointwise``, a 1x1 convolution."""
    theirs, ours = f"{_BLOCK[0]}.{theirs}", f"{_BLOCK[1]}.{ours}"
    kernel = [(f"{theirs}.weight", f"{ours}.kernel", Rearrange("o i 1 1 -> i o"))] if pointwise else []
    return [*kernel, (theirs, ours)]


def _names(pointwise: bool, inner_norm: str) -> list[tuple[Any, ...]]:
    """The rules that both namings share; ``pointwise``: their linear layers are 1x1 convolutions."""
    fused, parts = f"{_BLOCK[0]}.modulation.f", tuple(f"{_BLOCK[1]}.mixer.{part}" for part in _PARTS)
    kernels = [
        (
            f"{fused}.weight",
            tuple(f"{part}.kernel" for part in parts),
            Split(),
            Each((Rearrange("o i 1 1 -> i o"),) * 3),
        )
    ]
    return [
        *(kernels if pointwise else []),
        (fused, parts, Split()),
        (f"{_BLOCK[0]}.modulation.focal_layers.{{l}}.0", f"{_BLOCK[1]}.mixer.levels.{{l}}"),
        *_linear("modulation.h", "mixer.modulator", True),  # a convolution in the authors' files too
        (f"{_BLOCK[0]}.modulation.{inner_norm}", f"{_BLOCK[1]}.mixer.norm"),
        *_linear("modulation.proj", "mixer.out", pointwise),
        *_linear("mlp.fc1", "channel.up", pointwise),
        *_linear("mlp.fc2", "channel.down", pointwise),
        ("norm", "norm"),
    ]


def _timm(suffix: str) -> Naming:
    """timm's names; ``suffix`` is added to those of norms after a branch."""
    branches = [
        rule
        for number, branch in (("1", "mixer"), ("2", "channel"))
        for rule in (
            (f"{_BLOCK[0]}.norm{number}{suffix}", f"{_BLOCK[1]}.{branch}_norm"),
            (f"{_BLOCK[0]}.ls{number}.gamma", f"{_BLOCK[1]}.{branch}_scale.scale"),
        )
    ]
    shrink = [
        ("stem.proj", "stages.0.downsample.conv"),
        ("stem.norm", "stages.0.downsample.norm"),
        ("layers.{s}.downsample.proj", "stages.{s}.downsample.conv"),
        ("layers.{s}.downsample.norm", "stages.{s}.downsample.norm"),
    ]
    return Naming([*shrink, *_names(True, "norm"), *branches, ("head.fc", "head")])


def _authors() -> Naming:
    """The authors' names: the convolution between two stages belongs to the first of them."""
    rules: list[tuple[Any, ...]] = []
    for stage, theirs in enumerate(("patch_embed", *(f"layers.{s}.downsample" for s in range(3)))):
        rules += [
            (f"{theirs}.proj", f"stages.{stage}.downsample.conv"),
            (f"{theirs}.norm", f"stages.{stage}.downsample.norm"),
        ]
    for number, branch in (("1", "mixer"), ("2", "channel")):
        rules.append((f"{_BLOCK[0]}.norm{number}", f"{_BLOCK[1]}.{branch}_norm"))
        rules.append((f"{_BLOCK[0]}.gamma_{number}", f"{_BLOCK[1]}.{branch}_scale.scale"))
    return Naming([*rules, *_names(False, "ln"), ("head", "head")])


RULES = {"timm": _timm(""), "focalnet": _authors()}
LARGE_RULES = {"timm": _timm("_post"), "focalnet": RULES["focalnet"]}

for _variants, _rules in ((VARIANTS, RULES), (LARGE_VARIANTS, LARGE_RULES)):
    register_family(
        "focalnet",
        FocalNet,
        FocalNetConfig,
        _variants,
        our_choice=("focalnet_nano",),
        parameters=PARAMETERS,
        releases=RELEASES,
        rules=_rules,
        paper=(233,),
    )
