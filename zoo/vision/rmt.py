"""RMT: Retentive Networks Meet Vision Transformers (Fan et al., CVPR 2024, arXiv:2309.11523).

    image -> four 3x3 convolutions of strides 2, 1, 2, 1 -> stage 1 -> 3x3 convolution of stride 2 -> stage 2 -> ... ->
    stage 4 -> linear, batch norm, SiLU -> average pool -> head

    block: x = x + depthwise3x3(x);  x = x + Manhattan(LN(x));  x = x + W2 (h + depthwise3x3(h)), h = GELU(W1 LN(x))

Manhattan is attention whose scores fall with the Manhattan distance of two tokens (:mod:`layers.attention.manhattan`):
over the whole map in the last stages, along rows and then along columns in the first ones. Published for ImageNet-1k at
224: tiny 14.3 M parameters, 82.4 % top-1; small 27.0 M, 84.1 %; base 54.2 M, 85.0 %; large 95.5 M, 85.5 %. The authors'
code names them T3, S, M2 and L6. Their other models, trained with token labels (84.8, 85.6 and 86.1 %), are not
included.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from flax import nnx

from layers.block import Branch
from layers.depthwise import DepthwiseConv
from layers.initializers import variance_scaling
from layers.mixer import MixerSpec, Place
from layers.mlp import ConvMLP
from layers.patch import ConvNorm, ConvStem
from primitives.exponential import silu
from zoo.backbones.pyramid import Pyramid, PyramidConfig
from zoo.naming import Naming, Rearrange
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class RMTConfig(PyramidConfig):
    """Hyper-parameters of RMT.

    Attributes:
      decomposed: whether attention is along rows and then along columns, in each stage.
      decay_ranges: how much the decays of a stage's heads differ (:class:`layers.ManhattanAttention`).
      mlp_ratios: hidden width of the MLP / features, in each stage.
      layer_scales: initial values of the per-feature scale of the branches, in each stage; None for no scale.
      projection: features of the head's input.
    """

    num_heads: tuple[int, ...] = (4, 4, 8, 16)
    decomposed: tuple[bool, ...] = (True, True, True, False)
    decay_ranges: tuple[float, ...] = (4, 4, 6, 6)
    mlp_ratios: tuple[float, ...] = (4, 4, 3, 3)
    layer_scales: tuple[float | None, ...] = (None, None, None, None)
    projection: int = 1024


class RMT(Pyramid):
    """RMT; names as in :class:`Pyramid`."""

    config: RMTConfig

    @property
    def pooled_features(self) -> int:
        return self.config.projection

    def own_mixer(self, place: Place) -> MixerSpec:
        c, stage = self.config, place.stage or 0
        return {"name": "manhattan", "decomposed": c.decomposed[stage], "decay_range": c.decay_ranges[stage]}

    def make_stem(self, *, rngs: nnx.Rngs) -> nnx.Module:
        c, width = self.config, self.config.features[0]
        widths = (width // 2, width // 2, width, width)
        return ConvStem(c.in_channels, widths, strides=(2, 1, 2, 1), **self._convolution(rngs))

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> nnx.Module:
        before, features = self.config.features[stage - 1 : stage + 1]
        return ConvNorm(before, features, strides=2, **self._convolution(rngs))

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        features = self._width(place)
        hidden = int(features * self.config.mlp_ratios[place.stage or 0])
        return ConvMLP(features, hidden, residual=True, dropout=place.dropout, **self._common(rngs))

    def make_branches(self, place: Place, *, rngs: nnx.Rngs) -> dict[str, nnx.Module | Branch]:
        position = DepthwiseConv(self._width(place), 3, **self._common(rngs))
        return {
            "position": Branch(position, norm=None, scale=None, drop=None),
            **super().make_branches(place, rngs=rngs),
        }

    def block_options(self, place: Place) -> dict[str, Any]:
        return {"layer_scale": self.config.layer_scales[place.stage or 0]}

    def make_norm(self, *, rngs: nnx.Rngs) -> Any:
        c = self.config
        return ConvNorm(c.features[-1], c.projection, kernel_size=1, activation=silu, **self._convolution(rngs))

    def _convolution(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"kernel_init": variance_scaling(1 / 3, "fan_in", "uniform"), **self._common(rngs)}

    def _common(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype, "rngs": rngs}


# Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels.
NANO: dict[str, Any] = {
    "image_size": 32,
    "features": (48, 96),
    "depths": (2, 2),
    "mlp_ratios": (2, 2),
    "projection": 192,
    "drop_path": 0.1,
}
_DEEP: dict[str, Any] = {"depths": (4, 8, 25, 8), "layer_scales": (None, None, 1e-6, 1e-6)}

VARIANTS: dict[str, dict[str, Any]] = {
    "rmt_tiny": {"decomposed": (True, True, False, False), "mlp_ratios": (3, 3, 3, 3), "drop_path": 0.1},
    "rmt_small": {"depths": (3, 4, 18, 4), "drop_path": 0.15},
    "rmt_base": {
        **_DEEP,
        "features": (80, 160, 320, 512),
        "num_heads": (5, 5, 10, 16),
        "decay_ranges": (5, 5, 6, 6),
        "drop_path": 0.4,
    },
    "rmt_large": {
        **_DEEP,
        "features": (112, 224, 448, 640),
        "num_heads": (7, 7, 14, 20),
        "decay_ranges": (6, 6, 6, 6),
        "drop_path": 0.5,
    },
    "rmt_nano": {**NANO, "num_heads": (3, 6), "decomposed": (True, False)},
}

# Of the authors' code.
PARAMETERS = {
    "rmt_tiny": 14_334_216,
    "rmt_small": 26_967_240,
    "rmt_base": 54_154_896,
    "rmt_large": 95_464_864,
}

ALIASES = {"rmt_tiny": ("RMT_T3",), "rmt_small": ("RMT_S",), "rmt_base": ("RMT_M2",), "rmt_large": ("RMT_L6",)}


def angles(config: RMTConfig, where: Any, *, features: int = 2) -> np.ndarray:
    """The authors' frequencies of the rotation in a stage: one for every ``features`` features of a head, each
    twice."""
    count = config.features[where["s"]] // config.num_heads[where["s"]] // features
    return np.repeat(1 / 10000 ** np.linspace(0, 1, count), 2).astype(np.float32)


def _decay(config: RMTConfig, where: Any) -> np.ndarray:
    """The authors' logarithm of the decay of each head in a stage."""
    heads, spread = config.num_heads[where["s"]], config.decay_ranges[where["s"]]
    return np.log1p(-np.exp2(-2 - spread * np.arange(heads) / heads)).astype(np.float32)


_BLOCK, _OURS = "layers.{s}.blocks.{b}", "stages.{s}.blocks.{b}"
_PARTS = {
    "pos.conv": "position",
    "retention_layer_norm": "mixer_norm",
    "retention.q_proj": "mixer.query",
    "retention.k_proj": "mixer.key",
    "retention.v_proj": "mixer.value",
    "retention.lepe.conv": "mixer.enhancement",
    "retention.out_proj": "mixer.out",
    "final_layer_norm": "channel_norm",
    "ffn.fc1": "channel.up",
    "ffn.dwconv.conv": "channel.depthwise",
    "ffn.fc2": "channel.down",
}
# The stem, and the convolutions between stages, which the authors count to the earlier one.
AROUND: list[tuple[str, str]] = [
    *(
        (f"patch_embed.proj.{3 * i + j}", f"stages.0.downsample.{i}.{part}")
        for i in range(4)
        for j, part in enumerate(("conv", "norm"))
    ),
    *(
        (f"layers.{stage}.downsample.{theirs}", f"stages.{stage + 1}.downsample.{ours}")
        for stage in range(3)
        for theirs, ours in (("reduction", "conv"), ("norm", "norm"))
    ),
]

RULES = {
    "rmt": Naming(
        [
            *AROUND,
            *((f"{_BLOCK}.{theirs}", f"{_OURS}.{ours}") for theirs, ours in _PARTS.items()),
            (f"{_BLOCK}.gamma_1", f"{_OURS}.mixer_scale.scale", Rearrange("1 1 1 d -> d")),
            (f"{_BLOCK}.gamma_2", f"{_OURS}.channel_scale.scale", Rearrange("1 1 1 d -> d")),
            ("proj.weight", "norm.conv.kernel", Rearrange("o i -> 1 1 i o")),
            ("proj", "norm.conv"),
            ("norm", "norm.norm"),
            ("head", "head"),
        ],
        buffers={"layers.{s}/Relpos.angle": angles, "layers.{s}/Relpos.decay": _decay},
    )
}

register_family(
    "rmt",
    RMT,
    RMTConfig,
    VARIANTS,
    our_choice=("rmt_nano",),
    parameters=PARAMETERS,
    aliases=ALIASES,
    rules=RULES,
    preprocess={"crop_fraction": 0.875},
    paper=(9,),
)
