"""MaxViT: Multi-Axis Vision Transformer (Tu et al., ECCV 2022, arXiv:2204.01697).

    image -> 3x3 convolution of stride 2, norm, GELU, 3x3 convolution -> 4 stages -> average pool -> norm -> linear,
    tanh -> head

    block: x = MBConv(x)                                     the first of a stage halves the map
           x = x + Windowed(attention)(LN(x));  x = x + MLP(LN(x))
           x = x + Grid(attention)(LN(x));      x = x + MLP(LN(x))

Attention has a relative position bias, in windows and grids of image_size / 32 tokens a side: 7x7 at 224 pixels.
Published for ImageNet-1k at 224: tiny 31 M parameters, 83.62 % top-1; small 69 M, 84.45 %; base 119 M, 84.95 %;
large 212 M, 85.17 %; xlarge 475 M, for ImageNet-21k. The hyper-parameters are those of the released weights (timm's
``maxvit_*_tf_*``): batch norm with epsilon 1e-3, GELU by tanh, "same" padding.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.block import Block
from layers.initializers import variance_scaling
from layers.linear import Conv, Linear
from layers.mbconv import MBConv
from layers.mixer import MixerSpec, Place
from layers.mlp import MLP, gelu_tanh
from layers.module import Module
from layers.norm import create_norm
from layers.patch import ConvNorm
from layers.position import RelativePositionBias
from layers.tokens import Known
from zoo.backbones.pyramid import Pyramid, PyramidConfig
from zoo.naming import Flip, Naming, Rearrange, Split
from zoo.registry import register_family
from zoo.vision.releases import parse_releases


@dataclasses.dataclass(frozen=True)
class MaxViTConfig(PyramidConfig):
    """Hyper-parameters of MaxViT.

    Attributes:
      stem: features of both convolutions of the stem.
      window: tokens along each side of a window and of a grid; None is image_size / 32, at least 1.
      expansion: hidden width of MBConv / features.
      mlp_ratio: hidden width of the MLP / features.
    """

    stem: int = 64
    depths: tuple[int, ...] = (2, 2, 5, 2)
    window: int | None = None
    expansion: float = 4.0
    mlp_ratio: float = 4.0


class MaxViTStem(Module):
    """Two 3x3 convolutions, the first of stride 2 and followed by a norm and an activation."""

    def __init__(
        self, in_channels: int, features: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
    ):
        common = {
            "kernel_init": variance_scaling(2.0, "fan_out", "normal"),
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.first = ConvNorm(
            in_channels, features, strides=2, padding="SAME", norm_epsilon=1e-3, activation=gelu_tanh, **common
        )
        self.second = Conv(features, features, (3, 3), padding="SAME", **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, height / 2, width / 2, features), rounded up."""
        return self.second(self.first(x))


class MaxViTBlock(Module):
    """A convolution, then attention within windows, then attention within grids."""

    def __init__(self, conv: MBConv, window: Block, grid: Block):
        self.conv, self.window, self.grid = conv, window, grid

    def __call__(self, x: jax.Array, tokens: Known = None) -> jax.Array:
        """Maps (batch, height, width, in_features) to (batch, height', width', features); the convolution ignores the
        mask.
        """
        return self.grid(self.window(self.conv(x), tokens), tokens)


class MaxViT(Pyramid):
    """MaxViT; names as in :class:`Pyramid`. A user's mixer replaces the attention inside both windows and grids."""

    config: MaxViTConfig

    def __init__(self, config: MaxViTConfig, *, rngs: nnx.Rngs):
        side = config.window or max(config.image_size // 32, 1)
        self.window = (side, side)
        super().__init__(config, rngs=rngs)
        self.pre_logits = Linear(self.num_features, self.num_features, **self._common(rngs))

    def own_mixer(self, place: Place) -> MixerSpec:
        return {
            "name": "attention",
            "bias": functools.partial(RelativePositionBias, self.window, param_dtype=self.config.param_dtype),
        }

    def make_stem(self, *, rngs: nnx.Rngs) -> MaxViTStem:
        return MaxViTStem(self.config.in_channels, self.config.stem, **self._common(rngs))

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        features = self._width(place)
        return MLP(
            features,
            int(features * self.config.mlp_ratio),
            activation=gelu_tanh,
            dropout=place.dropout,
            **self._common(rngs),
        )

    def make_block(self, place: Place, *, rngs: nnx.Rngs) -> MaxViTBlock:
        c, features, stage = self.config, self._width(place), place.stage or 0
        source = features if place.index else c.features[stage - 1] if stage else c.stem
        common = self._common(rngs)

        def attend(combinator: str) -> Block:
            mixer = self.make_mixer(place, within={"name": combinator, "window": self.window}, rngs=rngs)
            branches = {"mixer": mixer, "channel": self.make_channel(place, rngs=rngs)}
            return Block(branches, features=features, norm_epsilon=1e-5, drop_path=place.drop_path, **common)

        strides = 1 if place.index else 2
        conv = MBConv(
            source,
            features,
            strides=strides,
            expansion=c.expansion,
            activation=gelu_tanh,
            drop_path=place.drop_path,
            **common,
        )
        return MaxViTBlock(conv, attend("windowed"), attend("grid"))

    def make_norm(self, *, rngs: nnx.Rngs) -> Any:
        return create_norm("layer", self.config.features[-1], epsilon=1e-5, **self._common(rngs))

    def pool(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.pre_logits(self.norm(jnp.mean(x, axis=(1, 2)))))

    def _common(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype, "rngs": rngs}


def _size(features: int, stem: int, depths: tuple[int, ...], drop_path: float) -> dict[str, Any]:
    widths = tuple(features * 2**stage for stage in range(4))
    return {
        "features": widths,
        "num_heads": tuple(width // 32 for width in widths),
        "stem": stem,
        "depths": depths,
        "drop_path": drop_path,
    }


# Stochastic depth as in the authors' ImageNet-1k recipes; xlarge has none there, and takes large's.
_SIZES = {
    "tiny": _size(64, 64, (2, 2, 5, 2), 0.2),
    "small": _size(96, 64, (2, 2, 5, 2), 0.3),
    "base": _size(96, 64, (2, 6, 14, 2), 0.4),
    "large": _size(128, 128, (2, 6, 14, 2), 0.6),
    "xlarge": _size(192, 192, (2, 6, 14, 2), 0.6),
}
_RESOLUTIONS = {"": 224, "_384": 384, "_512": 512}

_RELEASES = parse_releases("""
maxvit_tiny_tf_224: in1k 1000 imagenet 0.95
maxvit_tiny_tf_384: in1k 1000 half 1.0 squash
maxvit_tiny_tf_512: in1k 1000 half 1.0 squash
maxvit_small_tf_224: in1k 1000 imagenet 0.95
maxvit_small_tf_384: in1k 1000 half 1.0 squash
maxvit_small_tf_512: in1k 1000 half 1.0 squash
maxvit_base_tf_224: in1k 1000 imagenet 0.95; in21k 21843 half 0.95
maxvit_base_tf_384: in1k 1000 half 1.0 squash; in21k_ft_in1k 1000 half 1.0 squash
maxvit_base_tf_512: in1k 1000 half 1.0 squash; in21k_ft_in1k 1000 half 1.0 squash
maxvit_large_tf_224: in1k 1000 imagenet 0.95; in21k 21843 half 0.95
maxvit_large_tf_384: in1k 1000 half 1.0 squash; in21k_ft_in1k 1000 half 1.0 squash
maxvit_large_tf_512: in1k 1000 half 1.0 squash; in21k_ft_in1k 1000 half 1.0 squash
maxvit_xlarge_tf_224: in21k 21843 half 0.95
maxvit_xlarge_tf_384: in21k_ft_in1k 1000 half 1.0 squash
maxvit_xlarge_tf_512: in21k_ft_in1k 1000 half 1.0 squash
""")

# Of timm 1.0.31, by size, at 224, 384 and 512 pixels.
_PARAMETERS = {
    "tiny": (30_916_528, 30_977_008, 31_049_584),
    "small": (68_927_956, 69_018_676, 69_127_540),
    "base": (119_467_708, 119_653_468, 119_876_380),
    "large": (211_785_560, 212_033_240, 212_330_456),
    "xlarge": (506_987_643, 475_323_472, 475_769_296),
}

VARIANTS: dict[str, dict[str, Any]] = {}
ALIASES: dict[str, tuple[str]] = {}
RELEASES: dict[str, Any] = {}
PARAMETERS: dict[str, int] = {}
for _name, _fields in _SIZES.items():
    for (_suffix, _pixels), _count in zip(_RESOLUTIONS.items(), _PARAMETERS[_name], strict=True):
        _variant, _timm = f"maxvit_{_name}{_suffix}", f"maxvit_{_name}_tf_{_pixels}"
        RELEASES[_variant], ALIASES[_variant], PARAMETERS[_variant] = _RELEASES[_timm], (_timm,), _count
        VARIANTS[_variant] = {
            **_fields,
            "image_size": _pixels,
            "num_classes": next(iter(_RELEASES[_timm].values())).classes,
        }

# Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels, in windows and grids of 4x4.
VARIANTS["maxvit_nano"] = {
    "image_size": 32,
    "stem": 24,
    "features": (32, 64),
    "depths": (1, 2),
    "num_heads": (2, 4),
    "window": 4,
    "expansion": 2.0,
    "mlp_ratio": 2.0,
    "drop_path": 0.1,
}

_BLOCK = ("stages.{s}.blocks.{b}", "stages.{s}.blocks.{b}")


def _pointwise(theirs: str, ours: str) -> list[tuple[Any, ...]]:
    """A 1x1 convolution of theirs, a linear layer of ours."""
    return [(f"{theirs}.weight", f"{ours}.kernel", Rearrange("o i 1 1 -> i o")), (theirs, ours)]


def _attention(theirs: str, ours: str) -> list[tuple[Any, ...]]:
    theirs, ours = f"{_BLOCK[0]}.{theirs}", f"{_BLOCK[1]}.{ours}"
    mixer = f"{ours}.mixer.inner.inner"
    return [
        (f"{theirs}.norm1", f"{ours}.mixer_norm"),
        (f"{theirs}.attn.qkv", tuple(f"{mixer}.{part}" for part in ("query", "key", "value")), Split()),
        (
            f"{theirs}.attn.rel_pos.relative_position_bias_table",
            f"{mixer}.bias.table",
            Rearrange("n h w -> h w n"),
            Flip((0, 1)),
        ),
        (f"{theirs}.attn.proj", f"{mixer}.out"),
        (f"{theirs}.norm2", f"{ours}.channel_norm"),
        (f"{theirs}.mlp.fc1", f"{ours}.channel.up"),
        (f"{theirs}.mlp.fc2", f"{ours}.channel.down"),
    ]


def _conv(theirs: str, ours: str) -> tuple[str, str]:
    return f"{_BLOCK[0]}.conv.{theirs}", f"{_BLOCK[1]}.conv.{ours}"


RULES: dict[str, Naming] = {
    "timm": Naming(
        [
            ("stem.conv1", "stages.0.downsample.first.conv"),
            ("stem.norm1", "stages.0.downsample.first.norm"),
            ("stem.conv2", "stages.0.downsample.second"),
            *_pointwise(*_conv("shortcut.expand", "shortcut")),
            _conv("pre_norm", "norm"),
            *_pointwise(*_conv("conv1_1x1", "expand")),
            _conv("norm1", "expand_norm"),
            _conv("conv2_kxk", "depthwise"),
            _conv("norm2", "depthwise_norm"),
            *_pointwise(*_conv("se.fc1", "squeeze_excite.squeeze")),
            *_pointwise(*_conv("se.fc2", "squeeze_excite.excite")),
            *_pointwise(*_conv("conv3_1x1", "project")),
            *_attention("attn_block", "window"),
            *_attention("attn_grid", "grid"),
            ("head.norm", "norm"),
            ("head.pre_logits.fc", "pre_logits"),
            ("head.fc", "head"),
        ],
        tables=(f"{_BLOCK[1]}.window.mixer.inner.inner.bias.table", f"{_BLOCK[1]}.grid.mixer.inner.inner.bias.table"),
    )
}

register_family(
    "maxvit",
    MaxViT,
    MaxViTConfig,
    VARIANTS,
    our_choice=("maxvit_nano",),
    parameters=PARAMETERS,
    releases=RELEASES,
    aliases=ALIASES,
    rules=RULES,
    paper=(34,),
)
