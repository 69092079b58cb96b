"""PVT v2: Improved Baselines with Pyramid Vision Transformer (Wang et al., Computational Visual Media 2022,
arXiv:2106.13797).

    image -> 7x7 convolution of stride 4, LN -> stage 1 -> 3x3 convolution of stride 2, LN -> stage 2 -> ... -> stage 4
    -> average pool -> head

    block: x = x + SRA(LN(x));  x = x + ConvMLP(LN(x))            each stage ends with LN

SRA is attention to a reduced map: in the four stages patches of 8, 4, 2 and 1 tokens a side become one token; in the
linear form all maps are pooled to 7x7. There are no position tables: the depth-wise convolution inside the MLP encodes
positions. Published for ImageNet-1k at 224: b0 3.7 M parameters, 70.5 % top-1; b1 14.0 M, 78.7 %; b2 25.4 M, 82.0 %;
b2_li 22.6 M, 82.1 %; b3 45.2 M, 83.1 %; b4 62.6 M, 83.6 %; b5 82.0 M, 83.8 %.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from layers.initializers import variance_scaling
from layers.mixer import MixerSpec, Place
from layers.mlp import ConvMLP
from layers.norm import create_norm
from layers.patch import ConvNorm
from zoo.backbones.pyramid import Pyramid, PyramidConfig
from zoo.naming import Naming, Split
from zoo.registry import register_family
from zoo.vision.releases import parse_releases


@dataclasses.dataclass(frozen=True)
class PVTv2Config(PyramidConfig):
    """Hyper-parameters of PVT v2.

    Attributes:
      reductions: tokens along each side of a patch that attention sees as one token, in each stage.
      pool: tokens along each side of the pooled map in the linear form; None for ``reductions``.
      mlp_ratios: hidden width of the MLP / features, in each stage.
    """

    features: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    pool: int | None = None
    mlp_ratios: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0)
    drop_path: float = 0.1


class PVTv2(Pyramid):
    """PVT v2; names as in :class:`Pyramid`."""

    config: PVTv2Config

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        reduced = {"stride": c.reductions[place.stage or 0]} if c.pool is None else {"pool": c.pool}
        return {"name": "spatial_reduction", **reduced}

    def make_stem(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return self._embedding(self.config.in_channels, self.config.features[0], 7, 4, rngs)

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        return self._embedding(c.features[stage - 1], c.features[stage], 3, 2, rngs)

    def _embedding(self, in_features: int, features: int, kernel_size: int, strides: int, rngs: nnx.Rngs) -> nnx.Module:
        """A convolution of overlapping patches, with a norm."""
        init = variance_scaling(2.0, "fan_out", "normal")
        common = {"norm": "layer", "kernel_init": init, **self._common(rngs)}
        return ConvNorm(in_features, features, kernel_size=kernel_size, strides=strides, **common)

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        c, features = self.config, self._width(place)
        first = None if c.pool is None else jax.nn.relu
        hidden = int(features * c.mlp_ratios[place.stage or 0])
        return ConvMLP(features, hidden, first_activation=first, dropout=place.dropout, **self._common(rngs))

    def make_stage_norm(self, stage: int, *, rngs: nnx.Rngs) -> Any:
        return create_norm("layer", self.config.features[stage], epsilon=1e-6, **self._common(rngs))

    def _common(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype, "rngs": rngs}


# Names as in timm. Stochastic depth as in the authors' recipes.
VARIANTS: dict[str, dict[str, Any]] = {
    "pvt_v2_b0": {"features": (32, 64, 160, 256)},
    "pvt_v2_b1": {},
    "pvt_v2_b2": {"depths": (3, 4, 6, 3)},
    "pvt_v2_b2_li": {"depths": (3, 4, 6, 3), "pool": 7},
    "pvt_v2_b3": {"depths": (3, 4, 18, 3), "drop_path": 0.3},
    "pvt_v2_b4": {"depths": (3, 8, 27, 3), "drop_path": 0.3},
    "pvt_v2_b5": {"depths": (3, 6, 40, 3), "mlp_ratios": (4.0, 4.0, 4.0, 4.0), "drop_path": 0.3},
    # Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels.
    "pvt_v2_nano": {
        "image_size": 32,
        "features": (48, 96),
        "depths": (2, 2),
        "num_heads": (3, 6),
        "reductions": (2, 1),
        "mlp_ratios": (2.0, 2.0),
    },
}

# Of timm 1.0.31.
PARAMETERS = {
    "pvt_v2_b0": 3_666_760,
    "pvt_v2_b1": 14_009_000,
    "pvt_v2_b2": 25_362_856,
    "pvt_v2_b2_li": 22_553_512,
    "pvt_v2_b3": 45_238_696,
    "pvt_v2_b4": 62_556_072,
    "pvt_v2_b5": 81_956_008,
}

RELEASES = parse_releases("\n".join(f"{name}: in1k 1000 imagenet 0.9" for name in PARAMETERS))

_OURS = "stages.{s}.blocks.{b}"
_PROJECTIONS = f"{_OURS}.mixer.attention"
_AUTHORS: list[tuple[Any, ...]] = [
    ("norm1", f"{_OURS}.mixer_norm"),
    ("attn.q", f"{_PROJECTIONS}.query"),
    ("attn.kv", (f"{_PROJECTIONS}.key", f"{_PROJECTIONS}.value"), Split()),
    ("attn.sr", f"{_OURS}.mixer.reduction"),
    ("attn.norm", f"{_OURS}.mixer.reduction.norm"),
    ("attn.proj", f"{_PROJECTIONS}.out"),
    ("norm2", f"{_OURS}.channel_norm"),
    ("mlp.fc1", f"{_OURS}.channel.up"),
    ("mlp.fc2", f"{_OURS}.channel.down"),
]
_TRANSFORMERS: list[tuple[Any, ...]] = [
    ("layer_norm_1", f"{_OURS}.mixer_norm"),
    *((f"attention.{part}", f"{_PROJECTIONS}.{part}") for part in ("query", "key", "value")),
    ("attention.spatial_reduction", f"{_OURS}.mixer.reduction"),
    ("attention.layer_norm", f"{_OURS}.mixer.reduction.norm"),
    ("attention.proj", f"{_PROJECTIONS}.out"),
    ("layer_norm_2", f"{_OURS}.channel_norm"),
    ("mlp.dense1", f"{_OURS}.channel.up"),
    ("mlp.dwconv.dwconv", f"{_OURS}.channel.depthwise"),
    ("mlp.dense2", f"{_OURS}.channel.down"),
]


def _in_blocks(block: str, rules: list[tuple[Any, ...]], stage: str = "{s}") -> list[tuple[Any, ...]]:
    """Rules of the names inside a block, whose template is ``block``; for one stage if ``stage`` names it."""

    def ours(names: Any) -> Any:
        return (
            names.replace("{s}", stage)
            if isinstance(names, str)
            else tuple(name.replace("{s}", stage) for name in names)
        )

    return [(f"{block}.{theirs}", ours(names), *operations) for theirs, names, *operations in rules]


def _of_authors(stage: int) -> list[tuple[Any, ...]]:
    """The authors count stages from 1."""
    return [
        (f"patch_embed{stage + 1}.proj", f"stages.{stage}.downsample.conv"),
        (f"patch_embed{stage + 1}.norm", f"stages.{stage}.downsample.norm"),
        *_in_blocks(
            f"block{stage + 1}.{{b}}", [*_AUTHORS, ("mlp.dwconv.dwconv", f"{_OURS}.channel.depthwise")], str(stage)
        ),
        (f"norm{stage + 1}", f"stages.{stage}.norm"),
    ]


RULES: dict[str, Naming] = {
    "timm": Naming(
        [
            ("patch_embed.proj", "stages.0.downsample.conv"),
            ("patch_embed.norm", "stages.0.downsample.norm"),
            ("stages.{s}.downsample.proj", "stages.{s}.downsample.conv"),
            ("stages.{s}.downsample.norm", "stages.{s}.downsample.norm"),
            *_in_blocks("stages.{s}.blocks.{b}", [*_AUTHORS, ("mlp.dwconv", f"{_OURS}.channel.depthwise")]),
            ("stages.{s}.norm", "stages.{s}.norm"),
            ("head", "head"),
        ]
    ),
    "pvt": Naming([*(rule for stage in range(4) for rule in _of_authors(stage)), ("head", "head")]),
    "transformers": Naming(
        [
            ("pvt_v2.encoder.layers.{s}.patch_embedding.proj", "stages.{s}.downsample.conv"),
            ("pvt_v2.encoder.layers.{s}.patch_embedding.layer_norm", "stages.{s}.downsample.norm"),
            *_in_blocks("pvt_v2.encoder.layers.{s}.blocks.{b}", _TRANSFORMERS),
            ("pvt_v2.encoder.layers.{s}.layer_norm", "stages.{s}.norm"),
            ("classifier", "head"),
        ],
        prefix="pvt_v2.",
    ),
}

# Fields in transformers' config.json that weights do not show.
DESCRIBED: dict[str, Any] = {
    "num_heads": lambda config: tuple(config["num_attention_heads"]) if "num_attention_heads" in config else None
}

register_family(
    "pvt",
    PVTv2,
    PVTv2Config,
    VARIANTS,
    our_choice=("pvt_v2_nano",),
    parameters=PARAMETERS,
    releases=RELEASES,
    rules=RULES,
    described=DESCRIBED,
)
