"""RAVLT: Breaking the Low-Rank Dilemma of Linear Attention (Fan, Huang, He, CVPR 2025, arXiv:2411.07635).

    image -> four 3x3 convolutions of strides 2, 1, 1, 2 -> stage 1 -> 3x3 convolution of stride 2 -> stage 2 -> ... ->
    stage 4 -> linear, batch norm, SiLU -> average pool -> head

    block: x = x + depthwise3x3(x);  x = x + s1 RALA(LN(x));  x = x + s2 W2 (h + depthwise3x3(h)), h = GELU(W1 LN(x))

RMT's body with another attention (:mod:`layers.attention.rank_augmented`), which in all sizes is linear in the first
two stages and softmax attention in the last two. Published for ImageNet-1k at 224: tiny 14.9 M parameters, small 25.6
M, base 48.2 M, large 95.2 M; files under hf://aldjalkdf/RAVLT.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from flax import nnx

from layers.initializers import truncated_normal
from layers.mixer import MixerSpec, Place
from layers.patch import ConvStem
from zoo.naming import Each, Naming, Rearrange, Split
from zoo.registry import register_family
from zoo.vision import rmt
from zoo.vision.rmt import RMT, RMTConfig


@dataclasses.dataclass(frozen=True)
class RAVLTConfig(RMTConfig):
    """Hyper-parameters of RAVLT.

    Attributes:
      linear: whether attention is linear, in each stage. ``decomposed`` and ``decay_ranges`` are not used: they belong
        to RMT.
    """

    num_heads: tuple[int, ...] = (1, 2, 4, 8)
    linear: tuple[bool, ...] = (True, True, False, False)
    mlp_ratios: tuple[float, ...] = (3.5, 3.5, 3.5, 3.5)
    layer_scales: tuple[float | None, ...] = (1.0, 1.0, 1.0, 1.0)


class RAVLT(RMT):
    """RAVLT; names as in :class:`Pyramid`."""

    config: RAVLTConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        return {"name": "rala", "softmax": not self.config.linear[place.stage or 0]}

    def make_stem(self, *, rngs: nnx.Rngs) -> nnx.Module:
        c, width = self.config, self.config.features[0]
        widths = (width // 2, width // 2, width // 2, width)
        return ConvStem(c.in_channels, widths, strides=(2, 1, 1, 2), **self._convolution(rngs))

    def _convolution(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"kernel_init": truncated_normal(0.02), **self._common(rngs)}


VARIANTS: dict[str, dict[str, Any]] = {
    "ravlt_tiny": {"depths": (2, 2, 6, 2), "drop_path": 0.1},
    "ravlt_small": {
        "features": (64, 128, 320, 512),
        "depths": (3, 5, 9, 3),
        "num_heads": (1, 2, 5, 8),
        "drop_path": 0.15,
    },
    "ravlt_base": {
        "features": (96, 192, 384, 512),
        "depths": (4, 6, 12, 6),
        "num_heads": (1, 2, 6, 8),
        "layer_scales": (1.0, 1.0, 1e-6, 1e-6),
        "drop_path": 0.4,
    },
    "ravlt_large": {
        "features": (96, 192, 448, 640),
        "depths": (4, 7, 19, 8),
        "num_heads": (1, 2, 7, 10),
        "layer_scales": (1e-6, 1e-6, 1e-6, 1e-6),
        "drop_path": 0.55,
    },
    "ravlt_nano": {**rmt.NANO, "num_heads": (2, 4), "linear": (True, False)},
}

# Of the authors' code.
PARAMETERS = {
    "ravlt_tiny": 14_897_768,
    "ravlt_small": 25_591_208,
    "ravlt_base": 48_241_288,
    "ravlt_large": 95_242_440,
}

ALIASES = {f"ravlt_{size}": (f"RAVLT_{size[0].upper()}",) for size in ("tiny", "small", "base", "large")}


_BLOCK, _OURS = "layers.{s}.blocks.{b}", "stages.{s}.blocks.{b}"
_POINTWISE, _FACTORS = Rearrange("o i 1 1 -> i o"), Rearrange("1 d 1 1 -> d")
_PARTS = tuple(f"{_OURS}.mixer.{part}" for part in ("query", "key", "value", "gate"))
_KERNELS = tuple(f"{part}.kernel" for part in _PARTS)


def _linear(theirs: str, ours: str) -> list[tuple[Any, ...]]:
    """A 1x1 convolution of theirs, a linear layer of ours."""
    return [(f"{theirs}.weight", f"{ours}.kernel", _POINTWISE), (theirs, ours)]


RULES = {
    "ravlt": Naming(
        [
            *rmt.AROUND,
            (f"{_BLOCK}.pos", f"{_OURS}.position"),
            (f"{_BLOCK}.norm1.norm", f"{_OURS}.mixer_norm"),
            (f"{_BLOCK}.attn.qkvo.weight", _KERNELS, Split(), Each((_POINTWISE,) * 4)),
            (f"{_BLOCK}.attn.qkvo", _PARTS, Split()),
            (f"{_BLOCK}.attn.lepe", f"{_OURS}.mixer.enhancement"),
            *_linear(f"{_BLOCK}.attn.proj", f"{_OURS}.mixer.out"),
            (f"{_BLOCK}.norm2.norm", f"{_OURS}.channel_norm"),
            *_linear(f"{_BLOCK}.ffn.fc1", f"{_OURS}.channel.up"),
            (f"{_BLOCK}.ffn.dwconv", f"{_OURS}.channel.depthwise"),
            *_linear(f"{_BLOCK}.ffn.fc2", f"{_OURS}.channel.down"),
            (f"{_BLOCK}.gamma_1", f"{_OURS}.mixer_scale.scale", _FACTORS),
            (f"{_BLOCK}.gamma_2", f"{_OURS}.channel_scale.scale", _FACTORS),
            ("proj", "norm.conv"),
            ("norm", "norm.norm"),
            *_linear("head", "head"),
        ],
        buffers={"layers.{s}/RoPE.angle": partial(rmt.angles, features=4)},
    )
}

register_family(
    "ravlt",
    RAVLT,
    RAVLTConfig,
    VARIANTS,
    our_choice=("ravlt_nano",),
    parameters=PARAMETERS,
    aliases=ALIASES,
    rules=RULES,
    preprocess={"crop_fraction": 0.875},
    paper=(45,),
)
