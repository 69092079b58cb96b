"""ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention (Liao et al., AAAI 2025,
arXiv:2405.18425).

    image -> 9x9 convolution of stride 8, LN, SiLU, 3x3 convolution of stride 2, LN -> + positions -> blocks -> RMS norm
    -> average pool -> linear
    block: x = x + DirectionGated(norm(x)); x = x + mlp(norm(x))        (:mod:`layers.attention.direction_gated`)

Norms are RMS, the MLP's activation is SiLU; there is no class token. Published for ImageNet-1k at 224: tiny 5.8 M
parameters, 77.2 % top-1; small 22.6 M, 81.7 %; base 89.1 M, 82.6 %. The authors' code halves the sum of both directions
twice in evaluation, once in training; the norm after it cancels the difference up to its epsilon. Here it is halved
once. The pyramids are in :mod:`zoo.vision.vig_h`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from layers.initializers import variance_scaling
from layers.mixer import MixerSpec, Place
from layers.mlp import MLP
from layers.patch import ConvNorm
from layers.sequential import Sequential
from primitives.exponential import silu
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Naming, Rearrange, Split
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class ViGConfig(IsotropicConfig):
    """Hyper-parameters of ViG.

    Attributes:
      activated: whether SiLU follows the mixer's convolution and precedes its output layer.
      patch_size: side in pixels of a token, to which the stem's second convolution contributes a factor of 2.
    """

    activated: bool = False
    class_token: bool = False
    pool: Any = "average"
    norm: Any = "rms"
    antialias: bool = False


class ViGStem(Sequential):
    """A convolution of nearly disjoint patches of half a token's side, and one that joins 2x2 of them."""

    def __init__(self, in_channels: int, features: int, patch_size: int, **common: Any):
        self.half = patch_size // 2
        init = variance_scaling(1 / 3, "fan_in", "uniform")
        options: dict[str, Any] = {"norm": "layer", "kernel_init": init, **common}
        size: dict[str, Any] = {"kernel_size": self.half + 1, "strides": self.half, "padding": 1}
        first = ConvNorm(in_channels, features // 2, activation=silu, **size, **options)
        super().__init__([first, ConvNorm(features // 2, features, strides=2, **options)])

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of an image."""
        rows, columns = ((((side + 1 - self.half) // self.half + 1) + 1) // 2 for side in (height, width))
        return rows, columns


class ViG(Isotropic):
    """ViG; names as in :class:`Isotropic`."""

    config: ViGConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        return {"name": "direction_gated_linear", "activated": self.config.activated}

    def make_stem(self, *, rngs: nnx.Rngs) -> ViGStem:
        c = self.config
        common: dict[str, Any] = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        return ViGStem(c.in_channels, c.features, c.patch_size, **common)

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        return MLP(
            c.features, int(c.features * c.mlp_ratio), activation=silu, dropout=c.dropout, **place.dtypes, rngs=rngs
        )


VARIANTS: dict[str, dict[str, Any]] = {
    "vig_tiny": {"features": 192, "num_heads": 3, "activated": True},
    "vig_small": {"features": 384, "num_heads": 6, "drop_path": 0.2},
    "vig_base": {"features": 768, "num_heads": 12, "drop_path": 0.5},
    # Our choice, for two cores: 8x8 tokens from 32x32 pixels.
    "vig_nano_patch4_32": {
        "image_size": 32,
        "patch_size": 4,
        "features": 64,
        "depth": 4,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "activated": True,
    },
}

# Of the authors' code.
PARAMETERS = {
    "vig_tiny": 5_846_056,
    "vig_small": 22_638_184,
    "vig_base": 89_068_264,
}


def mixer_rules(theirs: str, ours: str) -> list[tuple[Any, ...]]:
    """The rules of the mixer."""
    return [
        (f"{theirs}.in_proj.0", f"{ours}.conv"),
        (f"{theirs}.qkv_proj", tuple(f"{ours}.{part}" for part in ("query", "key", "value")), Split()),
        (f"{theirs}.gk_proj.0", f"{ours}.decay.down"),
        (f"{theirs}.gk_proj.1", f"{ours}.decay.up"),
        (f"{theirs}.g_norm", f"{ours}.norm"),
        (f"{theirs}.l_norm", f"{ours}.local_norm"),
        (f"{theirs}.g_proj", f"{ours}.gate"),
        (f"{theirs}.o_proj", f"{ours}.out"),
    ]


RULES = {
    "vig": Naming(
        rules=[
            *(
                (f"patch_embed.proj.{3 * i + j}", f"patch_embed.{i}.{part}")
                for i in range(2)
                for j, part in enumerate(("conv", "norm"))
            ),
            ("pos_embed", "position.table", Rearrange("1 (h w) d -> h w d")),
            ("blocks.{i}.attn_norm", "blocks.{i}.mixer_norm"),
            *mixer_rules("blocks.{i}.attn", "blocks.{i}.mixer"),
            ("blocks.{i}.mlp_norm", "blocks.{i}.channel_norm"),
            ("blocks.{i}.mlp.fc1", "blocks.{i}.channel.up"),
            ("blocks.{i}.mlp.fc2", "blocks.{i}.channel.down"),
            ("norm", "norm"),
            ("head", "head"),
        ],
        tables=("position.table",),
    )
}

_COMMON: dict[str, Any] = {"parameters": PARAMETERS, "paper": (206,)}
register_family("vig", ViG, ViGConfig, VARIANTS, our_choice=("vig_nano_patch4_32",), rules=RULES, **_COMMON)
