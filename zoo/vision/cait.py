"""CaiT: Going deeper with Image Transformers (Touvron et al., 2021, arXiv:2103.17239).

    image -> patches -> + positions -> blocks -> class token: blocks of class attention -> norm -> class token -> linear
    block: x = x + s1 talking_heads(norm(x)); x = x + s2 mlp(norm(x))

The class token enters after the body and attends to the patches in two blocks of its own
(:mod:`layers.class_attention`). All branches have a scale for each feature, which starts at 1e-5, or at 1e-6 in small
with 36 blocks and in medium. Names and sizes are timm's (1.0.31); ``cait_nano_32`` is our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from layers.mixer import MixerSpec, Place
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Naming, Rearrange, Split
from zoo.registry import register_family
from zoo.vision.releases import parse_releases


@dataclasses.dataclass(frozen=True)
class CaiTConfig(IsotropicConfig):
    """Hyper-parameters of CaiT; ``drop_path`` is the same for all blocks."""

    class_position: Any = "after"
    layer_scale: float | None = 1e-5


class CaiT(Isotropic):
    """CaiT; names as in :class:`Isotropic`."""

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        norm = self._norm_of() if c.qk_norm else None
        return {"name": "talking_heads", "use_bias": c.qkv_bias, "out_bias": True, "qk_norm": norm, "rotary": c.rotary}

    def place(self, stage: int, index: int) -> Place:
        return dataclasses.replace(super().place(stage, index), drop_path=self.config.drop_path or None)


_XXS: dict[str, Any] = {"features": 192, "num_heads": 4}
_SMALL: dict[str, Any] = {"features": 384, "num_heads": 8}
_MEDIUM: dict[str, Any] = {"features": 768, "num_heads": 16, "layer_scale": 1e-6}
_NANO: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "features": 64,
    "depth": 4,
    "num_heads": 4,
    "mlp_ratio": 2.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "cait_nano_32": _NANO | {"layer_scale": 0.1},
    "cait_xxs24_224": _XXS | {"depth": 24},
    "cait_xxs24_384": _XXS | {"depth": 24, "image_size": 384},
    "cait_xxs36_224": _XXS | {"depth": 36},
    "cait_xxs36_384": _XXS | {"depth": 36, "image_size": 384},
    "cait_xs24_384": {"features": 288, "num_heads": 6, "depth": 24, "image_size": 384},
    "cait_s24_224": _SMALL | {"depth": 24},
    "cait_s24_384": _SMALL | {"depth": 24, "image_size": 384},
    "cait_s36_384": _SMALL | {"depth": 36, "image_size": 384, "layer_scale": 1e-6},
    "cait_m36_384": _MEDIUM | {"depth": 36, "image_size": 384},
    "cait_m48_448": _MEDIUM | {"depth": 48, "image_size": 448},
}

# Of timm 1.0.31.
PARAMETERS = {
    "cait_xxs24_224": 11_956_264,
    "cait_xxs24_384": 12_029_224,
    "cait_xxs36_224": 17_299_720,
    "cait_xxs36_384": 17_372_680,
    "cait_xs24_384": 26_670_088,
    "cait_s24_224": 46_916_200,
    "cait_s24_384": 47_062_120,
    "cait_s36_384": 68_366_632,
    "cait_m36_384": 271_221_352,
    "cait_m48_448": 356_460_520,
}

RELEASES = parse_releases("\n".join(f"{name}: fb_dist_in1k 1000 imagenet 1.0" for name in PARAMETERS))


def _block(theirs: str, ours: str) -> list[tuple[Any, ...]]:
    """The rules that blocks of the body and of the class token share."""
    return [
        (f"{theirs}.norm1", f"{ours}.mixer_norm"),
        (f"{theirs}.attn.proj", f"{ours}.mixer.out"),
        (f"{theirs}.gamma_1", f"{ours}.mixer_scale.scale"),
        (f"{theirs}.norm2", f"{ours}.channel_norm"),
        (f"{theirs}.mlp.fc1", f"{ours}.channel.up"),
        (f"{theirs}.mlp.fc2", f"{ours}.channel.down"),
        (f"{theirs}.gamma_2", f"{ours}.channel_scale.scale"),
    ]


_MIXER, _READER = "blocks.{i}.mixer", "class_blocks.{i}.mixer"
_PARTS = {"q": "query", "k": "key", "v": "value"}
RULES = {
    "timm": Naming(
        [
            ("patch_embed.proj", "patch_embed"),
            ("cls_token", "class_token", Rearrange("1 n d -> n d")),
            ("pos_embed", "position.table", Rearrange("1 (h w) d -> h w d")),
            *_block("blocks.{i}", "blocks.{i}"),
            ("blocks.{i}.attn.qkv", tuple(f"{_MIXER}.{part}" for part in _PARTS.values()), Split()),
            ("blocks.{i}.attn.proj_l", f"{_MIXER}.score_mixing"),
            ("blocks.{i}.attn.proj_w", f"{_MIXER}.weight_mixing"),
            *_block("blocks_token_only.{i}", "class_blocks.{i}"),
            *[(f"blocks_token_only.{{i}}.attn.{theirs}", f"{_READER}.{ours}") for theirs, ours in _PARTS.items()],
            ("norm", "norm"),
            ("head", "head"),
        ],
        tables=("position.table",),
    )
}

register_family(
    "cait",
    CaiT,
    CaiTConfig,
    VARIANTS,
    our_choice=("cait_nano_32",),
    parameters=PARAMETERS,
    releases=RELEASES,
    rules=RULES,
)
