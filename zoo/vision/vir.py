"""ViR: Towards Efficient Vision Retention Backbones (Hatamizadeh et al., 2023, arXiv:2310.19731).

    image -> patches -> linear -> + positions, class token last -> blocks -> norm -> class token -> linear
    block: x = x + s1 retention(norm(x)); x = x + s2 mlp(norm(x))        (:mod:`layers.linear_attention.retention`)

A ViT whose blocks are causal along the patches in row-major order: the class token comes last, and an image can be read
row by row with a state of constant size (``blocks.extend``). Retention has neither rotary positions nor a gate; the
decay of a head is 1 - 1/32 to 1 - 1/512 per token. The authors' code is in github.com/anom63931/ViR. Its parallel form
applies a softmax to all scores, with 0 for those of later tokens: it therefore sees later tokens and differs from its
recurrent and chunkwise forms. Here all forms equal these two. Its doubled sequence ("bidirectional") and the hybrid
models of the paper's second version are not included. There are no released weights, and the repository states no
accuracies. ``vir_nano_patch4_32`` is our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from layers.mixer import Mixer, MixerSpec, Place, create_mixer
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Naming, Rearrange, Split
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class ViRConfig(IsotropicConfig):
    """Hyper-parameters of ViR."""

    layer_scale: float | None = 1e-5
    class_position: Any = "last"
    prefix_positions: Any = "none"


class ViR(Isotropic):
    """ViR; names as in :class:`Isotropic`. A user's mixers are made causal, too."""

    config: ViRConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        decays = {"decays": "paper", "rotary": None}
        return {"name": "retention", "value_expansion": 1.0, "gated": False, "use_bias": True, **decays}

    def make_mixer(self, place: Place, *, rngs: nnx.Rngs) -> Mixer:
        return create_mixer(self.mixer_spec(place), self.config.features, causal=True, place=place, rngs=rngs)


_LARGE: dict[str, Any] = {"features": 1024, "depth": 24, "num_heads": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "vir_nano_patch4_32": {
        "image_size": 32,
        "patch_size": 4,
        "features": 64,
        "depth": 6,
        "num_heads": 4,
        "mlp_ratio": 2.0,
        "layer_scale": 0.1,
    },
    "vir_small_patch16_224": {"features": 384, "num_heads": 6},
    "vir_base_patch16_224": {},
    "vir_large_patch16_224": _LARGE,
    "vir_large_patch14_224": _LARGE | {"patch_size": 14},
}

# Of the authors' code.
PARAMETERS = {
    "vir_small_patch16_224": 22_059_496,
    "vir_base_patch16_224": 86_585_320,
    "vir_large_patch16_224": 304_374_760,
    "vir_large_patch14_224": 304_251_880,
}

_MIXER = "blocks.{i}.mixer"
RULES = {
    "vir": Naming(
        [
            ("patch_embed.proj", "patch_embed"),
            ("cls_token", "class_token", Rearrange("1 n d -> n d")),
            ("pos_embed", "position.table", Rearrange("1 (h w) d -> h w d")),
            ("blocks.{i}.norm1", "blocks.{i}.mixer_norm"),
            ("blocks.{i}.retention.qkv", tuple(f"{_MIXER}.{part}" for part in ("query", "key", "value")), Split()),
            ("blocks.{i}.retention.out_proj", f"{_MIXER}.out"),
            ("blocks.{i}.ls1.gamma", "blocks.{i}.mixer_scale.scale"),
            ("blocks.{i}.norm2", "blocks.{i}.channel_norm"),
            ("blocks.{i}.mlp.fc1", "blocks.{i}.channel.up"),
            ("blocks.{i}.mlp.fc2", "blocks.{i}.channel.down"),
            ("blocks.{i}.ls2.gamma", "blocks.{i}.channel_scale.scale"),
            ("norm", "norm"),
            ("head", "head"),
        ],
        tables=("position.table",),
    )
}

register_family(
    "vir",
    ViR,
    ViRConfig,
    VARIANTS,
    our_choice=("vir_nano_patch4_32",),
    parameters=PARAMETERS,
    rules=RULES,
    paper=(46,),
)
