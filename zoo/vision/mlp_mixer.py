"""MLP-Mixer: An all-MLP Architecture for Vision (Tolstikhin et al., 2021, arXiv:2105.01601).

    image -> patches -> linear -> blocks -> norm -> average pool -> linear
    block: x = x + token_mlp(norm(x)); x = x + mlp(norm(x))        (:mod:`layers.token_mlp`)

There are no positions and no class token. The token MLP has half as many hidden tokens as the model has features. Its
matrices have the size of the tokens of 224 pixels; for other image sizes they are resampled, which is our choice: the
paper's models take one size. Names and sizes are timm's (1.0.31). GELU is exact, as in timm; the authors' code
approximates it, so that their files (naming "google") need ``mlp="gelu_tanh"``. ``mixer_nano_patch4_32`` is our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from layers.mixer import MixerSpec, Place
from zoo.backbones.isotropic import ACTIVATIONS, Isotropic, IsotropicConfig
from zoo.naming import Naming
from zoo.registry import register_family
from zoo.vision.releases import parse_releases


@dataclasses.dataclass(frozen=True)
class MLPMixerConfig(IsotropicConfig):
    """Hyper-parameters of MLP-Mixer.

    Attributes:
      token_ratio: hidden tokens of the token MLP / features.
    """

    token_ratio: float = 0.5
    class_token: bool = False
    position: Any = None
    pool: Any = "average"


class MLPMixer(Isotropic):
    """MLP-Mixer; names as in :class:`Isotropic`."""

    config: MLPMixerConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        return {"name": "token_mlp", "hidden": int(c.token_ratio * c.features), "activation": ACTIVATIONS[c.mlp]}


_S: dict[str, Any] = {"features": 512, "depth": 8, "num_heads": 8}
_B: dict[str, Any] = {"features": 768, "depth": 12, "num_heads": 12}
_L: dict[str, Any] = {"features": 1024, "depth": 24, "num_heads": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "mixer_nano_patch4_32": {
        "image_size": 32,
        "patch_size": 4,
        "features": 64,
        "depth": 6,
        "num_heads": 4,
        "mlp_ratio": 2.0,
    },
    "mixer_s32_224": _S | {"patch_size": 32},
    "mixer_s16_224": _S,
    "mixer_b32_224": _B | {"patch_size": 32},
    "mixer_b16_224": _B,
    "mixer_l32_224": _L | {"patch_size": 32},
    "mixer_l16_224": _L,
}

# Of timm 1.0.31.
PARAMETERS = {
    "mixer_s32_224": 19_104_624,
    "mixer_s16_224": 18_528_264,
    "mixer_b32_224": 60_293_428,
    "mixer_b16_224": 59_880_472,
    "mixer_l32_224": 206_939_264,
    "mixer_l16_224": 208_196_168,
}

RELEASES = parse_releases("""
mixer_b16_224: goog_in21k_ft_in1k 1000 half 0.875; goog_in21k 21843 half 0.875
mixer_b16_224: miil_in21k 11221 none 0.875 bilinear; miil_in21k_ft_in1k 1000 none 0.875 bilinear
mixer_l16_224: goog_in21k_ft_in1k 1000 half 0.875; goog_in21k 21843 half 0.875
""")

RULES = {
    "timm": Naming(
        [
            ("stem.proj", "patch_embed"),
            ("blocks.{i}.norm1", "blocks.{i}.mixer_norm"),
            ("blocks.{i}.mlp_tokens.fc1", "blocks.{i}.mixer.up"),
            ("blocks.{i}.mlp_tokens.fc2", "blocks.{i}.mixer.down"),
            ("blocks.{i}.norm2", "blocks.{i}.channel_norm"),
            ("blocks.{i}.mlp_channels.fc1", "blocks.{i}.channel.up"),
            ("blocks.{i}.mlp_channels.fc2", "blocks.{i}.channel.down"),
            ("norm", "norm"),
            ("head", "head"),
        ]
    ),
    "google": Naming(
        [
            ("stem", "patch_embed"),
            ("MixerBlock_{i}/LayerNorm_0", "blocks.{i}.mixer_norm"),
            ("MixerBlock_{i}/token_mixing/Dense_0", "blocks.{i}.mixer.up"),
            ("MixerBlock_{i}/token_mixing/Dense_1", "blocks.{i}.mixer.down"),
            ("MixerBlock_{i}/LayerNorm_1", "blocks.{i}.channel_norm"),
            ("MixerBlock_{i}/channel_mixing/Dense_0", "blocks.{i}.channel.up"),
            ("MixerBlock_{i}/channel_mixing/Dense_1", "blocks.{i}.channel.down"),
            ("pre_head_layer_norm", "norm"),
            ("head", "head"),
        ],
        layout="jax",
    ),
}

register_family(
    "mlp_mixer",
    MLPMixer,
    MLPMixerConfig,
    VARIANTS,
    our_choice=("mixer_nano_patch4_32",),
    parameters=PARAMETERS,
    releases=RELEASES,
    rules=RULES,
)
