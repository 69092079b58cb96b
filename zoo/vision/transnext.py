"""TransNeXt: Robust Foveal Visual Perception for Vision Transformers (Shi, CVPR 2024, arXiv:2311.17132).

    image -> 7x7 convolution of stride 4, LN -> stage 1 -> LN, 3x3 convolution of stride 2, LN -> stage 2 -> ... ->
    stage 4 -> LN -> average pool -> head

    block: x = x + aggregated(LN(x));  x = x + ConvGLU(LN(x))

Aggregated attention (:mod:`layers.attention.aggregated`) sees 3x3 neighbors and a pooled map of 7x7; in stage 4, whose
map has 7x7 tokens, it sees all of them. Published for ImageNet-1k at 224: micro 12.8 M parameters, 82.5 % top-1; tiny
28.2 M, 84.0 %; small 49.7 M, 84.7 %; base 89.7 M, 84.8 %; at 384 small 86.0 %, base 86.2 %; micro with a pooled map in
all stages, at 256, 82.6 %. ``transnext_nano`` is our choice.

MoH: Multi-Head Attention as Mixture-of-Head Attention (Jin et al., ICML 2025, arXiv:2410.11842) trains small and base
with a router that weights the heads for each token and activates 75, 80 or 50 % of them: in all stages for 50 %, in the
last two otherwise. Base has 84.9 % top-1 with 75 % of its heads and 84.7 % with 50 %.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from layers.initializers import variance_scaling
from layers.mixer import MixerSpec, Place
from layers.mlp import GatedConvMLP
from layers.norm import create_norm
from layers.patch import ConvNorm
from zoo.backbones.pyramid import Pyramid, PyramidConfig
from zoo.naming import Naming, Rearrange, Split
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class TransNeXtConfig(PyramidConfig):
    """Hyper-parameters of TransNeXt.

    Attributes:
      pretrained_size: side in pixels of the images that the weights were first trained on, which sets the unit of
        distances; None for ``image_size``.
      reductions: tokens along each side that are pooled to one, in each stage; 1 for no pooled map.
      window: tokens along each side of the neighborhood.
      mlp_ratios: 3/2 of the hidden width of the MLP / features, in each stage.
      shared_heads, chosen_heads: number of heads that all tokens use, and of the others that each token uses, in each
        stage; None for attention without a router.
    """

    features: tuple[int, ...] = (72, 144, 288, 576)
    depths: tuple[int, ...] = (5, 5, 22, 5)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    pretrained_size: int | None = None
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    window: int = 3
    mlp_ratios: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0)
    shared_heads: tuple[int, ...] | None = None
    chosen_heads: tuple[int, ...] | None = None

    @property
    def neighbors(self) -> int:
        """Tokens of a neighborhood."""
        return self.window**2


class TransNeXt(Pyramid):
    """TransNeXt; names as in :class:`Pyramid`."""

    config: TransNeXtConfig

    def grid_of(self, stage: int) -> tuple[int, int]:
        return (-(-self.config.image_size // (4 * 2**stage)),) * 2

    def own_mixer(self, place: Place) -> MixerSpec:
        c, stage = self.config, place.stage or 0
        first = -(-(c.pretrained_size or c.image_size) // (4 * 2**stage))
        mixed = (("shared", c.shared_heads), ("chosen", c.chosen_heads))
        heads = {name: given[stage] for name, given in mixed if given is not None}
        shape = {"window": c.window, "reduction": c.reductions[stage], "grid": (first, first)}
        routed = sum(depth for depth, chosen in zip(c.depths, c.chosen_heads or (), strict=False) if chosen)
        return {"name": "aggregated", **shape, **heads, "depth": routed or 1}

    def make_stem(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return self._embedding(self.config.in_channels, self.config.features[0], 7, 4, rngs)

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        return self._embedding(c.features[stage - 1], c.features[stage], 3, 2, rngs)

    def _embedding(self, in_features: int, features: int, kernel_size: int, strides: int, rngs: nnx.Rngs) -> nnx.Module:
        """A convolution of overlapping patches, with a norm."""
        common = {"norm": "layer", "kernel_init": variance_scaling(2.0, "fan_out", "normal"), **self._common(rngs)}
        return ConvNorm(in_features, features, kernel_size=kernel_size, strides=strides, **common)

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        features = self._width(place)
        hidden = int(2 * int(features * self.config.mlp_ratios[place.stage or 0]) / 3)
        return GatedConvMLP(features, hidden, dropout=place.dropout, **self._common(rngs))

    def make_stage_norm(self, stage: int, *, rngs: nnx.Rngs) -> Any:
        return create_norm("layer", self.config.features[stage], epsilon=1e-6, **self._common(rngs))

    def _common(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype, "rngs": rngs}


_MICRO: dict[str, Any] = {
    "features": (48, 96, 192, 384),
    "depths": (2, 2, 15, 2),
    "num_heads": (2, 4, 8, 16),
    "drop_path": 0.15,
}
_SMALL: dict[str, Any] = {"drop_path": 0.45}
_BASE: dict[str, Any] = {
    "features": (96, 192, 384, 768),
    "depths": (5, 5, 23, 5),
    "num_heads": (4, 8, 16, 32),
    "drop_path": 0.6,
}
_TUNED: dict[str, Any] = {"image_size": 384, "pretrained_size": 224}
VARIANTS: dict[str, dict[str, Any]] = {
    # Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels.
    "transnext_nano": {
        "image_size": 32,
        "features": (48, 96),
        "depths": (2, 2),
        "num_heads": (3, 6),
        "reductions": (2, 1),
        "mlp_ratios": (3.0, 3.0),
        "drop_path": 0.1,
    },
    "transnext_micro": _MICRO,
    "transnext_micro_aaaa": {**_MICRO, "image_size": 256, "reductions": (16, 8, 4, 2)},
    "transnext_tiny": {"depths": (2, 2, 15, 2), "drop_path": 0.25},
    "transnext_small": _SMALL,
    "transnext_small_384": {**_SMALL, **_TUNED, "drop_path": 0.7},
    "transnext_base": _BASE,
    "transnext_base_384": {**_BASE, **_TUNED, "drop_path": 0.8},
    "moh_transnext_small_75": {**_SMALL, "shared_heads": (3, 6, 3, 4), "chosen_heads": (0, 0, 6, 12)},
    "moh_transnext_small_80": {**_SMALL, "shared_heads": (3, 6, 3, 8), "chosen_heads": (0, 0, 6, 12)},
    "moh_transnext_base_50": {**_BASE, "shared_heads": (2, 2, 2, 4), "chosen_heads": (2, 4, 6, 8)},
    "moh_transnext_base_75": {**_BASE, "shared_heads": (4, 8, 4, 5), "chosen_heads": (0, 0, 8, 16)},
}

# Of the authors' code.
PARAMETERS = {
    "transnext_micro": 12_809_304,
    "transnext_micro_aaaa": 13_114_008,
    "transnext_tiny": 28_258_960,
    "transnext_small": 49_741_564,
    "transnext_small_384": 49_741_564,
    "transnext_base": 89_721_496,
    "transnext_base_384": 89_721_496,
    "moh_transnext_small_75": 49_910_548,
    "moh_transnext_small_80": 49_910_548,
    "moh_transnext_base_50": 90_023_512,
    "moh_transnext_base_75": 90_020_632,
}

_HEADS = {"wg": "routed_gate", "wg_0": "balance", "wg_1": "shared_gate"}


def _stage(stage: int, pooled: bool) -> list[tuple[Any, ...]]:
    """The authors count stages from 1, and fuse the queries of a stage without pooled map with keys and values."""
    theirs, ours = f"block{stage + 1}.{{b}}", f"stages.{stage}.blocks.{{b}}"
    attention, mixer, mlp = f"{theirs}.attn", f"{ours}.mixer", f"{theirs}.mlp"
    key_value = f"{mixer}.key", f"{mixer}.value"
    return [
        (f"patch_embed{stage + 1}.proj", f"stages.{stage}.downsample.conv"),
        (f"patch_embed{stage + 1}.norm", f"stages.{stage}.downsample.norm"),
        (f"{theirs}.norm1", f"{ours}.mixer_norm"),
        *(
            [(f"{attention}.q", f"{mixer}.query"), (f"{attention}.kv", key_value, Split())]
            if pooled
            else [(f"{attention}.qkv", (f"{mixer}.query", *key_value), Split())]
        ),
        (f"{attention}.query_embedding", f"{mixer}.query_embedding", Rearrange("h 1 d -> h d")),
        (f"{attention}.temperature", f"{mixer}.temperature", Rearrange("h 1 1 -> h")),
        (f"{attention}.cpb_fc1", f"{mixer}.offset_up"),
        (f"{attention}.cpb_fc2", f"{mixer}.offset_down"),
        (f"{attention}.sr.weight", f"{mixer}.reduction.kernel", Rearrange("o i 1 1 -> i o")),
        (f"{attention}.sr", f"{mixer}.reduction"),
        (f"{attention}.norm", f"{mixer}.reduction_norm"),
        (f"{attention}.relative_pos_bias_local", f"{mixer}.near_bias"),
        (f"{attention}.learnable_tokens", f"{mixer}.near.kernel"),
        (f"{attention}.learnable_bias", f"{mixer}.near.bias", Rearrange("h 1 n -> (h n)", n="neighbors")),
        *((f"{attention}.{name}", f"{mixer}.{gate}") for name, gate in _HEADS.items()),
        (f"{attention}.proj", f"{mixer}.out"),
        (f"{theirs}.norm2", f"{ours}.channel_norm"),
        (f"{mlp}.fc1", (f"{ours}.channel.gate", f"{ours}.channel.up"), Split()),
        (f"{mlp}.dwconv.dwconv", f"{ours}.channel.depthwise"),
        (f"{mlp}.fc2", f"{ours}.channel.down"),
        (f"norm{stage + 1}", f"stages.{stage}.norm"),
    ]


def _rules(pooled: tuple[bool, ...]) -> dict[str, Naming]:
    rules = [rule for stage, some in enumerate(pooled) for rule in _stage(stage, some)]
    return {"transnext": Naming([*rules, ("head", "head")])}


def _pooled(name: str) -> tuple[bool, ...]:
    """Which stages of a variant have a pooled map."""
    return tuple(reduction > 1 for reduction in VARIANTS[name].get("reductions", TransNeXtConfig.reductions))


for _kind in dict.fromkeys(map(_pooled, VARIANTS)):
    register_family(
        "transnext",
        TransNeXt,
        TransNeXtConfig,
        {name: options for name, options in VARIANTS.items() if _pooled(name) == _kind},
        our_choice=("transnext_nano",),
        parameters=PARAMETERS,
        rules=_rules(_kind),
        paper=(44,),
    )
