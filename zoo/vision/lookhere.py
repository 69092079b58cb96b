"""LookHere: Vision Transformers with Directed Attention Generalize and Extrapolate (Fuller et al., NeurIPS 2024,
arXiv:2405.13985).

    image -> patches -> class token -> blocks -> norm -> class token -> linear, tanh -> linear
    block: x = x + s1 LookHere(norm(x)); x = x + s2 mlp(norm(x))

The body is DeiT III's without positions: each head looks in one direction, and its scores fall with the distance
(:mod:`layers.attention.look_here`). Nothing learned depends on the size of the image. The three published models have
fields of view of 180, 90 and 45 degrees, 91.1 M parameters each.

The released files hold their ``head_directions``, ``layer_slopes`` and ``global_slope`` beside the weights
(``torch.load(FILE)["config"]``): give them as ``fields=tuple(head_directions.split("-"))``, ``layer_slopes=`` and
``slope=``. The values of the variants are our choice, with eight heads that look in eight directions and four that see
everything; without those of the file, the released weights give other outputs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from layers.mixer import MixerSpec, Place
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Naming
from zoo.registry import register_family
from zoo.vision import vit


@dataclasses.dataclass(frozen=True)
class LookHereConfig(IsotropicConfig):
    """Hyper-parameters of LookHere; ``drop_path`` is the same for all blocks.

    Attributes:
      fields, slope, layer_slopes: of :class:`layers.DirectedAttention`.
      rounded: whether distance penalties are rounded to bfloat16, as in the authors' code.
    """

    fields: tuple[str, ...] = ("halves", "diagonals", "none")
    slope: float = 1.0
    layer_slopes: tuple[float, float] = (1.5, 0.5)
    rounded: bool = True
    position: Any = None
    prefix_positions: Any = "none"
    layer_scale: float | None = 1e-4
    norm_epsilon: float = 1e-5
    pooler: bool = True
    pooler_ratio: float = 4.0
    drop_path: float = 0.1


class LookHere(Isotropic):
    """LookHere; names as in :class:`Isotropic`."""

    config: LookHereConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        slopes = {"slope": c.slope, "layer_slopes": c.layer_slopes, "rounded": c.rounded}
        return {"name": "lookhere", "fields": c.fields, **slopes, "use_bias": c.qkv_bias}

    def place(self, stage: int, index: int) -> Place:
        return dataclasses.replace(super().place(stage, index), drop_path=self.config.drop_path or None)


VARIANTS: dict[str, dict[str, Any]] = {
    "lookhere_180_base_patch16_224": {},
    "lookhere_90_base_patch16_224": {"fields": ("corners", "triangles", "none")},
    "lookhere_45_base_patch16_224": {"fields": ("eighths1", "eighths2", "none")},
    "lookhere_nano_patch4_32": {
        "image_size": 32,
        "patch_size": 4,
        "features": 64,
        "depth": 6,
        "num_heads": 8,
        "mlp_ratio": 2.0,
        "pooler_ratio": 1.0,
        "fields": ("corners", "none"),
        "layer_scale": 0.1,
    },
}

# Of the authors' code.
PARAMETERS = {name: 91_101_160 for name in VARIANTS if "base" in name}

RULES = {
    "lookhere": Naming(
        [
            ("head.fc1", "pooler"),
            ("head.fc2", "head"),
            *vit.RULES["timm"].rules,
        ]
    )
}

register_family(
    "lookhere",
    LookHere,
    LookHereConfig,
    VARIANTS,
    our_choice=("lookhere_nano_patch4_32",),
    parameters=PARAMETERS,
    rules=RULES,
    paper=(164,),
)
