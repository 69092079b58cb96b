"""NiNformer: A Network in Network Transformer with Token Mixing Generated Gating Function (Abdullah and Aydin, 2024,
arXiv:2403.02411).

    image -> patches -> linear -> blocks -> average pool -> linear
    block: x = x + gate(norm(x)); x = x + mlp(norm(x))        with one norm for both (:mod:`layers.mixer_gate`)

There are no positions, no class token and no final norm. The authors' model is for CIFAR-10: 32 pixels, patches of 4,
trained by Adam at 1e-3 with batches of 128 (2.65 M parameters; the repository states no accuracy, and there are no
weights). The matrices of the token MLP have the size of the tokens of 32 pixels; for other image sizes they are
resampled, which is our choice. ``ninformer_nano_patch4_32`` is our choice, too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from layers.block import Branch
from layers.mixer import MixerSpec, Place
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Naming
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class NiNformerConfig(IsotropicConfig):
    """Hyper-parameters of NiNformer; ``mlp_ratio * features`` is the hidden width of all three MLPs of a block.

    Attributes:
      dropout: of the MLPs, not of the embedded patches.
    """

    num_classes: int = 10
    image_size: int = 32
    patch_size: int = 4
    features: int = 256
    depth: int = 4
    num_heads: int = 8
    mlp_ratio: float = 2.0
    dropout: float = 0.0
    norm_epsilon: float = 1e-5
    class_token: bool = False
    position: Any = None
    pool: Any = "average"
    final_norm: bool = False


class NiNformer(Isotropic):
    """NiNformer; names as in :class:`Isotropic`; the MLP of a block shares ``mixer_norm``."""

    config: NiNformerConfig

    def __init__(self, config: NiNformerConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.dropout = None

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        return {"name": "mixer_gate", "hidden": int(c.mlp_ratio * c.features), "norm_epsilon": c.norm_epsilon}

    def make_branches(self, place: Place, *, rngs: nnx.Rngs) -> dict[str, nnx.Module | Branch]:
        mixer, channel = super().make_branches(place, rngs=rngs).values()
        return {"mixer": mixer, "channel": Branch(channel, norm_of="mixer")}  # type: ignore[arg-type]


VARIANTS: dict[str, dict[str, Any]] = {
    "ninformer_cifar": {},
    "ninformer_nano_patch4_32": {"num_classes": 1000, "features": 64, "num_heads": 4},
}

# Of the authors' code.
PARAMETERS = {"ninformer_cifar": 2_652_170}

_GATE = "blocks.{i}.mixer.gate"
RULES = {
    "ninformer": Naming(
        [
            ("patcher", "patch_embed"),
            ("model.{i}.norm", "blocks.{i}.mixer_norm"),
            ("model.{i}.mgu.proj", "blocks.{i}.mixer.proj"),
            ("model.{i}.mgu.Mixer.token_mix.0", f"{_GATE}.mixer_norm"),
            ("model.{i}.mgu.Mixer.token_mix.2.net.0", f"{_GATE}.mixer.up"),
            ("model.{i}.mgu.Mixer.token_mix.2.net.3", f"{_GATE}.mixer.down"),
            ("model.{i}.mgu.Mixer.channel_mix.0", f"{_GATE}.channel_norm"),
            ("model.{i}.mgu.Mixer.channel_mix.1.net.0", f"{_GATE}.channel.up"),
            ("model.{i}.mgu.Mixer.channel_mix.1.net.3", f"{_GATE}.channel.down"),
            ("model.{i}.ffn.net.0", "blocks.{i}.channel.up"),
            ("model.{i}.ffn.net.3", "blocks.{i}.channel.down"),
            ("classifier", "head"),
        ]
    )
}

register_family(
    "ninformer",
    NiNformer,
    NiNformerConfig,
    VARIANTS,
    our_choice=("ninformer_nano_patch4_32",),
    parameters=PARAMETERS,
    rules=RULES,
    paper=(0,),
)
