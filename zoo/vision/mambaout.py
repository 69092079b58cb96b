"""MambaOut: Do We Really Need Mamba for Vision? (Yu, Wang, CVPR 2025, arXiv:2405.07992).

    image -> 3x3 convolution of stride 2, LN, GELU, 3x3 convolution of stride 2, LN -> stage 1 -> 3x3 convolution of
    stride 2, LN -> stage 2 -> ... -> stage 4 -> average pool -> LN -> linear, GELU, LN -> head

    block: x = x + GatedConvolution(LN(x))        (:mod:`layers.gated_convolution`)

Published for ImageNet-1k at 224: femto 7.3 M parameters, 78.9 % top-1; kobe 9.1 M, 80.0 %; tiny 26.5 M, 82.7 %; small
48.5 M, 84.1 %; base 84.8 M, 84.2 %. timm's own models ("rw") have no norm inside the stem, the norm between stages
before the convolution, layer scale, and no norm after the last GELU; their base models are wider inside the blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import truncated_normal
from layers.linear import Linear
from layers.mixer import MixerSpec, Place
from layers.mlp import gelu
from layers.norm import create_norm
from layers.patch import ConvNorm
from layers.sequential import Sequential
from primitives.exponential import silu
from zoo.backbones.pyramid import Pyramid, PyramidConfig
from zoo.naming import Naming, Split
from zoo.registry import register_family
from zoo.vision.releases import parse_releases


@dataclasses.dataclass(frozen=True)
class MambaOutConfig(PyramidConfig):
    """Hyper-parameters of MambaOut.

    Attributes:
      num_heads: for a mixer that replaces the gated convolution, which has no heads.
      expansion, conv_ratio, kernel_size: of the gated convolutions.
      activation: of them and of the stem.
      stem_norm: whether a norm follows the stem's first convolution.
      norm_first: whether the norm between two stages precedes the convolution.
      layer_scale: initial value of the per-feature scale of the branches; None for no scale.
      head_ratio: hidden features of the head / features.
      head_norm: whether there is a norm before the classifier.
    """

    features: tuple[int, ...] = (96, 192, 384, 576)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    num_heads: tuple[int, ...] = (3, 6, 12, 18)
    expansion: float = 8 / 3
    conv_ratio: float = 1.0
    kernel_size: int = 7
    activation: Callable[[jax.Array], jax.Array] = gelu
    stem_norm: bool = True
    norm_first: bool = False
    layer_scale: float | None = None
    head_ratio: int = 4
    head_norm: bool = True


class MambaOut(Pyramid):
    """MambaOut; names as in :class:`Pyramid`, with ``pre_logits`` and ``pre_logits_norm`` before the head."""

    config: MambaOutConfig
    before_head = ("pre_logits", "pre_logits_norm")

    def __init__(self, config: MambaOutConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        hidden, common = self.num_features, self._common(rngs)
        self.pre_logits = Linear(config.features[-1], hidden, kernel_init=truncated_normal(0.02), **common)
        self.pre_logits_norm = self._norm(hidden, rngs) if config.head_norm else None

    @property
    def pooled_features(self) -> int:
        return self.config.head_ratio * self.config.features[-1]

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        sizes = {"expansion": c.expansion, "conv_ratio": c.conv_ratio, "kernel_size": c.kernel_size}
        return {"name": "gated_convolution", **sizes, "activation": c.activation}

    def make_stem(self, *, rngs: nnx.Rngs) -> Sequential:
        c, width = self.config, self.config.features[0]
        first: dict[str, Any] = {"norm": "layer" if c.stem_norm else None, "activation": c.activation}
        options = self._convolution(rngs)
        return Sequential(
            [
                ConvNorm(c.in_channels, width // 2, **first, **options),
                ConvNorm(width // 2, width, norm="layer", **options),
            ]
        )

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> nnx.Module:
        source, features = self.config.features[stage - 1 : stage + 1]
        first = self.config.norm_first
        return ConvNorm(source, features, norm="layer", norm_first=first, **self._convolution(rngs))

    def block_options(self, place: Place) -> dict[str, Any]:
        return {"layer_scale": self.config.layer_scale}

    def make_norm(self, *, rngs: nnx.Rngs) -> Any:
        return self._norm(self.config.features[-1], rngs)

    def pool(self, x: jax.Array) -> jax.Array:
        x = gelu(self.pre_logits(self.norm(jnp.mean(x, axis=(1, 2)))))
        return x if self.pre_logits_norm is None else self.pre_logits_norm(x)

    def _norm(self, features: int, rngs: nnx.Rngs) -> Any:
        return create_norm("layer", features, epsilon=1e-6, **self._common(rngs))

    def _convolution(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"strides": 2, "norm_epsilon": 1e-6, "kernel_init": truncated_normal(0.02), **self._common(rngs)}

    def _common(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype, "rngs": rngs}


_FEMTO: dict[str, Any] = {"features": (48, 96, 192, 288), "num_heads": (2, 4, 8, 12)}
_BASE: dict[str, Any] = {"features": (128, 256, 512, 768), "num_heads": (4, 8, 16, 24)}
_DEEP: dict[str, Any] = {"depths": (3, 4, 27, 3)}
# timm's layer scales start at 1e-5, whatever its variants ask for.
_RW: dict[str, Any] = {"stem_norm": False, "norm_first": True, "layer_scale": 1e-5, "head_norm": False}
_WIDE: dict[str, Any] = {**_BASE, **_RW, "expansion": 3.0, "conv_ratio": 1.5, "activation": silu}

# Stochastic depth as in the authors' recipes.
VARIANTS: dict[str, dict[str, Any]] = {
    "mambaout_femto": {**_FEMTO, "drop_path": 0.025},
    "mambaout_kobe": {**_FEMTO, "depths": (3, 3, 15, 3), "drop_path": 0.025},
    "mambaout_tiny": {"drop_path": 0.2},
    "mambaout_small": {**_DEEP, "drop_path": 0.4},
    "mambaout_base": {**_BASE, **_DEEP, "drop_path": 0.6},
    "mambaout_small_rw": {**_DEEP, **_RW},
    "mambaout_base_short_rw": {**_BASE, **_RW, "depths": (3, 3, 25, 3), "expansion": 3.0, "conv_ratio": 1.25},
    "mambaout_base_tall_rw": {**_BASE, **_RW, "depths": (3, 4, 30, 3), "expansion": 2.5, "conv_ratio": 1.25},
    "mambaout_base_wide_rw": {**_WIDE, **_DEEP},
    "mambaout_base_plus_rw": {**_WIDE, "depths": (3, 4, 30, 3)},
    # Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels.
    "mambaout_nano": {
        "image_size": 32,
        "features": (48, 96),
        "depths": (2, 3),
        "num_heads": (3, 6),
        "kernel_size": 5,
        "head_ratio": 2,
        "drop_path": 0.1,
    },
}

RELEASES = parse_releases("""
mambaout_femto: in1k 1000 imagenet 1.0
mambaout_kobe: in1k 1000 imagenet 1.0
mambaout_tiny: in1k 1000 imagenet 1.0
mambaout_small: in1k 1000 imagenet 1.0
mambaout_base: in1k 1000 imagenet 1.0
mambaout_small_rw: sw_e450_in1k 1000 imagenet 1.0
mambaout_base_short_rw: sw_e500_in1k 1000 imagenet 0.95
mambaout_base_tall_rw: sw_e500_in1k 1000 imagenet 0.95
mambaout_base_wide_rw: sw_e500_in1k 1000 imagenet 0.95
mambaout_base_plus_rw: sw_e150_in12k_ft_in1k 1000 imagenet 1.0
mambaout_base_plus_rw: sw_e150_r384_in12k_ft_in1k 1000 imagenet 1.0 squash 384px
mambaout_base_plus_rw: sw_e150_in12k 11821 imagenet 1.0
""")

# Of timm 1.0.31.
PARAMETERS = {
    "mambaout_femto": 7_304_536,
    "mambaout_kobe": 9_141_208,
    "mambaout_tiny": 26_545_096,
    "mambaout_small": 48_488_072,
    "mambaout_base": 84_813_092,
    "mambaout_small_rw": 48_495_560,
    "mambaout_base_short_rw": 88_827_688,
    "mambaout_base_tall_rw": 86_481_448,
    "mambaout_base_wide_rw": 94_448_104,
    "mambaout_base_plus_rw": 101_656_552,
}


def _names(stem: str, shrink: str, block: str, head: dict[str, str]) -> Naming:
    """A naming, from its templates of the stem, of downsampling and of blocks, and its names of the head's parts."""
    mixer = "stages.{s}.blocks.{b}.mixer"
    return Naming(
        [
            *(
                (f"{stem}.{theirs}{i + 1}", f"stages.0.downsample.{i}.{theirs}")
                for i in range(2)
                for theirs in ("conv", "norm")
            ),
            (f"{shrink}.conv", "stages.{s}.downsample.conv"),
            (f"{shrink}.norm", "stages.{s}.downsample.norm"),
            (f"{block}.norm", "stages.{s}.blocks.{b}.mixer_norm"),
            (f"{block}.fc1", (f"{mixer}.gate", f"{mixer}.value"), Split()),
            (f"{block}.conv", f"{mixer}.conv"),
            (f"{block}.fc2", f"{mixer}.out"),
            (f"{block}.ls.gamma", "stages.{s}.blocks.{b}.mixer_scale.scale"),
            *head.items(),
        ]
    )


RULES = {
    "timm": _names(
        "stem",
        "stages.{s}.downsample",
        "stages.{s}.blocks.{b}",
        {
            "head.norm": "norm",
            "head.pre_logits.fc": "pre_logits",
            "head.pre_logits.norm": "pre_logits_norm",
            "head.fc": "head",
        },
    ),
    "mambaout": _names(
        "downsample_layers.0",
        "downsample_layers.{s}",
        "stages.{s}.{b}",
        {"norm": "norm", "head.fc1": "pre_logits", "head.norm": "pre_logits_norm", "head.fc2": "head"},
    ),
}

register_family(
    "mambaout",
    MambaOut,
    MambaOutConfig,
    VARIANTS,
    our_choice=("mambaout_nano",),
    parameters=PARAMETERS,
    releases=RELEASES,
    rules=RULES,
    paper=(238,),
)
