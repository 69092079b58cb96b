"""LongViT: When an Image is Worth 1,024 x 1,024 Words (W. Wang et al., 2023, arXiv:2312.03558).

    image -> patches of 32 -> + positions -> blocks of dilated attention -> average -> norm -> head

A plain image transformer whose tokens attend by LongNet's dilated attention (:mod:`layers.sparse.dilated`), with
norms inside both branches too (Foundation Transformers, arXiv:2210.06423). Sizes, and the segments of each image
size, are those of the authors' code (torchscale, examples/longvit); ``longvit_nano_patch4_32`` is our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from layers.mixer import Place
from layers.mlp import MLP
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Naming, Rearrange
from zoo.registry import freeze, register_family


@dataclasses.dataclass(frozen=True)
class LongViTConfig(IsotropicConfig):
    """Hyper-parameters of LongViT; those of the attention are options of its mixer."""

    class_token: bool = False
    pool: Any = "average"
    norm_after_pool: bool = True
    norm_epsilon: float = 1e-5


class LongViT(Isotropic):
    """LongViT; names as in :class:`Isotropic`, and ``blocks.N.channel.norm``."""

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        return MLP(
            c.features, int(c.features * c.mlp_ratio), norm="layer", dropout=c.dropout, **place.dtypes, rngs=rngs
        )


def _dilated(*segments: int) -> Any:
    return freeze(
        {
            "name": "dilated_attention",
            "segments": segments,
            "rates": tuple(2**i for i in range(len(segments))),
            "inner_norm": True,
        }
    )


_SMALL = {"patch_size": 32, "features": 384, "depth": 12, "num_heads": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "longvit_nano_patch4_32": {
        "image_size": 32,
        "patch_size": 4,
        "features": 64,
        "depth": 6,
        "num_heads": 4,
        "mlp_ratio": 2.0,
        "mixer": _dilated(16, 32, 64),
    },
    "longvit_small_patch32_1024": {**_SMALL, "image_size": 1024, "mixer": _dilated(64, 128, 256, 512, 1024)},
    "longvit_small_patch32_4096": {**_SMALL, "image_size": 4096, "mixer": _dilated(1024, 2048, 4096, 8192, 16384)},
    "longvit_small_patch32_8192": {**_SMALL, "image_size": 8192, "mixer": _dilated(1024, 4096, 8192, 16384, 65536)},
    "longvit_small_patch32_16384": {**_SMALL, "image_size": 16384, "mixer": _dilated(1024, 4096, 16384, 65536, 262144)},
    "longvit_small_patch32_32768": {
        **_SMALL,
        "image_size": 32768,
        "mixer": _dilated(1024, 4096, 32768, 262144, 1048576),
    },
}

_BLOCK = "model.encoder.layers.{i}"
_PROJECTIONS = {"q": "query", "k": "key", "v": "value", "out": "out"}
RULES = {
    "torchscale": Naming(
        rules=(
            ("model.patch_embed.proj", "patch_embed"),
            ("model.pos_embed", "position.table", Rearrange("1 (h w) d -> h w d")),
            (f"{_BLOCK}.self_attn_layer_norm", "blocks.{i}.mixer_norm"),
            *(
                (f"{_BLOCK}.self_attn.{theirs}_proj", f"blocks.{{i}}.mixer.{ours}")
                for theirs, ours in _PROJECTIONS.items()
            ),
            (f"{_BLOCK}.self_attn.inner_attn_ln", "blocks.{i}.mixer.inner_norm"),
            (f"{_BLOCK}.final_layer_norm", "blocks.{i}.channel_norm"),
            (f"{_BLOCK}.ffn.fc1", "blocks.{i}.channel.up"),
            (f"{_BLOCK}.ffn.ffn_layernorm", "blocks.{i}.channel.norm"),
            (f"{_BLOCK}.ffn.fc2", "blocks.{i}.channel.down"),
            ("fc_norm", "pool_norm"),
            ("head", "head"),
        ),
        tables=("position.table",),
        prefix="model.",
    )
}

register_family(
    "longvit", LongViT, LongViTConfig, VARIANTS, our_choice=("longvit_nano_patch4_32",), rules=RULES, paper=(131,)
)
