"""ResMLP: Feedforward networks for image classification with data-efficient training (Touvron et al., 2021,
arXiv:2105.03404).

    image -> patches -> linear -> blocks -> affine -> average pool -> linear
    block: x = x + s1 linear_across_tokens(affine(x)); x = x + s2 mlp(affine(x))        (:mod:`layers.token_mlp`)

In place of norms there are a scale and a shift of each feature, without statistics. The linear layer across tokens has
the size of the tokens of 224 pixels; for other image sizes it is resampled, which is our choice: the paper's models
take one size. Names and sizes are timm's (1.0.31); ``resmlp_nano_patch4_32`` is our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from layers.mixer import MixerSpec, Place
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Naming, Rearrange
from zoo.registry import register_family
from zoo.vision.releases import parse_releases


@dataclasses.dataclass(frozen=True)
class ResMLPConfig(IsotropicConfig):
    """Hyper-parameters of ResMLP."""

    features: int = 384
    num_heads: int = 6
    norm: Any = "affine"
    layer_scale: float | None = 1e-4
    class_token: bool = False
    position: Any = None
    pool: Any = "average"


class ResMLP(Isotropic):
    """ResMLP; names as in :class:`Isotropic`."""

    def own_mixer(self, place: Place) -> MixerSpec:
        return {"name": "token_mlp", "hidden": None}


VARIANTS: dict[str, dict[str, Any]] = {
    "resmlp_nano_patch4_32": {
        "image_size": 32,
        "patch_size": 4,
        "features": 64,
        "depth": 6,
        "num_heads": 4,
        "mlp_ratio": 2.0,
        "layer_scale": 0.1,
    },
    "resmlp_12_224": {},
    "resmlp_24_224": {"depth": 24, "layer_scale": 1e-5},
    "resmlp_36_224": {"depth": 36, "layer_scale": 1e-6},
    "resmlp_big_24_224": {"patch_size": 8, "features": 768, "depth": 24, "num_heads": 12, "layer_scale": 1e-6},
}

# Of timm 1.0.31.
PARAMETERS = {
    "resmlp_12_224": 15_350_872,
    "resmlp_24_224": 30_020_680,
    "resmlp_36_224": 44_690_488,
    "resmlp_big_24_224": 129_138_280,
}

_CLASSES = "1000 imagenet 0.875"
RELEASES = parse_releases(f"""
resmlp_12_224: fb_in1k {_CLASSES}; fb_distilled_in1k {_CLASSES}; fb_dino {_CLASSES}
resmlp_24_224: fb_in1k {_CLASSES}; fb_distilled_in1k {_CLASSES}; fb_dino {_CLASSES}
resmlp_36_224: fb_in1k {_CLASSES}; fb_distilled_in1k {_CLASSES}
resmlp_big_24_224: fb_in1k {_CLASSES}; fb_distilled_in1k {_CLASSES}; fb_in22k_ft_in1k {_CLASSES}
""")


def _rules(stem: str, tokens: str, channels: str, scale: str, affine: tuple[Any, ...]) -> Naming:
    """A naming, from its names of the parts; ``affine`` rearranges scales and shifts."""
    norms = {"blocks.{i}.norm1": "blocks.{i}.mixer_norm", "blocks.{i}.norm2": "blocks.{i}.channel_norm", "norm": "norm"}
    return Naming(
        [
            (f"{stem}.proj", "patch_embed"),
            *(
                (f"{theirs}.{greek}", f"{ours}.{leaf}", *affine)
                for theirs, ours in norms.items()
                for greek, leaf in (("alpha", "scale"), ("beta", "bias"))
            ),
            (f"blocks.{{i}}.{tokens}", "blocks.{i}.mixer.linear"),
            (f"blocks.{{i}}.{scale}1", "blocks.{i}.mixer_scale.scale"),
            (f"blocks.{{i}}.{channels}.fc1", "blocks.{i}.channel.up"),
            (f"blocks.{{i}}.{channels}.fc2", "blocks.{i}.channel.down"),
            (f"blocks.{{i}}.{scale}2", "blocks.{i}.channel_scale.scale"),
            ("head", "head"),
        ]
    )


RULES = {
    "timm": _rules("stem", "linear_tokens", "mlp_channels", "ls", (Rearrange("1 1 d -> d"),)),
    "facebook": _rules("patch_embed", "attn", "mlp", "gamma_", ()),
}

register_family(
    "resmlp",
    ResMLP,
    ResMLPConfig,
    VARIANTS,
    our_choice=("resmlp_nano_patch4_32",),
    parameters=PARAMETERS,
    releases=RELEASES,
    rules=RULES,
)
