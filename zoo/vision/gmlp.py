"""gMLP: Pay Attention to MLPs (Liu et al., 2021, arXiv:2105.08050).

    image -> patches -> linear -> blocks -> norm -> average pool -> linear
    block: x = x + W_o (u * (W norm(v) + b)),  [u; v] = GELU(W_i norm(x))        (:mod:`layers.token_mlp`)

W mixes tokens, in the same way for all features; there are no other mixers or MLPs, no positions and no class token. W
has the size of the tokens of 224 pixels; for other image sizes it is resampled, which is our choice: the paper's models
take one size. Names and sizes are timm's (1.0.31); ``gmlp_nano_patch4_32`` is our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from layers.mixer import MixerSpec, Place
from zoo.backbones.isotropic import ACTIVATIONS, Isotropic, IsotropicConfig
from zoo.naming import Naming
from zoo.registry import register_family
from zoo.vision.releases import parse_releases


@dataclasses.dataclass(frozen=True)
class GMLPConfig(IsotropicConfig):
    """Hyper-parameters of gMLP; ``mlp_ratio`` is the width of u and v together / features."""

    depth: int = 30
    mlp_ratio: float = 6.0
    class_token: bool = False
    position: Any = None
    pool: Any = "average"


class GMLP(Isotropic):
    """gMLP; names as in :class:`Isotropic`, without ``channel``.

    Blocks with another mixer also have an MLP.
    """

    config: GMLPConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        return {"name": "spatial_gating", "expansion": c.mlp_ratio, "activation": ACTIVATIONS[c.mlp]}

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> Any:
        spec = self.mixer_spec(place)
        name = spec.get("name") if isinstance(spec, Mapping) else spec
        return None if name == "spatial_gating" else super().make_channel(place, rngs=rngs)


VARIANTS: dict[str, dict[str, Any]] = {
    "gmlp_nano_patch4_32": {
        "image_size": 32,
        "patch_size": 4,
        "features": 64,
        "depth": 6,
        "num_heads": 4,
        "mlp_ratio": 4.0,
    },
    "gmlp_ti16_224": {"features": 128, "num_heads": 2},
    "gmlp_s16_224": {"features": 256, "num_heads": 4},
    "gmlp_b16_224": {"features": 512, "num_heads": 8},
}

# Of timm 1.0.31.
PARAMETERS = {"gmlp_ti16_224": 5_867_328, "gmlp_s16_224": 19_422_656, "gmlp_b16_224": 73_075_392}

RELEASES = parse_releases("gmlp_s16_224: ra3_in1k 1000 half 0.875")

_MIXER = "blocks.{i}.mixer"
RULES = {
    "timm": Naming(
        [
            ("stem.proj", "patch_embed"),
            ("blocks.{i}.norm", "blocks.{i}.mixer_norm"),
            ("blocks.{i}.mlp_channels.fc1", f"{_MIXER}.up"),
            ("blocks.{i}.mlp_channels.gate.norm", f"{_MIXER}.norm"),
            ("blocks.{i}.mlp_channels.gate.proj", f"{_MIXER}.gate"),
            ("blocks.{i}.mlp_channels.fc2", f"{_MIXER}.down"),
            ("norm", "norm"),
            ("head", "head"),
        ]
    )
}

register_family(
    "gmlp",
    GMLP,
    GMLPConfig,
    VARIANTS,
    our_choice=("gmlp_nano_patch4_32",),
    parameters=PARAMETERS,
    releases=RELEASES,
    rules=RULES,
)
