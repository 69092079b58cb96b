"""HVT: Scalable Vision Transformers with Hierarchical Pooling (Pan et al., 2021, arXiv:2103.10619).

    image -> patches -> + positions -> blocks, with pooling between -> norm -> average of all tokens -> linear
    after blocks 0, w, 2 w, ...:  x = max_pool(x) + positions                  windows of 3 of the sequence, stride 2

A DeiT without class token: 196 tokens become 97, 48, 23 and 11. Max-pooling is along the sequence, so that no grid is
left. Published top-1 accuracy on ImageNet-1k, with GFLOPs: tiny_1 69.64 (0.64); small_0 to small_4 80.39 (4.57), 78.00
(2.40), 77.36 (1.94), 76.32 (1.62), 75.23 (1.39). ``hvt_nano_patch4_32`` is our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from layers.reduction import ReductionSpec
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Naming, Rearrange, Split
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class HVTConfig(IsotropicConfig):
    """Hyper-parameters of HVT.

    Attributes:
      pool_every: blocks from one pooling to the next, the first being after block 0; None for no pooling.
        ``reductions`` replaces it.
    """

    pool_every: int | None = 12
    class_token: bool = False
    pool: Any = "average"


class HVT(Isotropic):
    """HVT; names as in :class:`Isotropic`, with ``blocks.reductions.N.position``."""

    def reduction_spec(self, index: int) -> ReductionSpec | None:
        c = self.config
        if c.reductions is not None or c.pool_every is None:
            return super().reduction_spec(index)
        return None if index % c.pool_every else "max_pool"


_SMALL: dict[str, Any] = {"features": 384, "num_heads": 6}
VARIANTS: dict[str, dict[str, Any]] = {
    "hvt_nano_patch4_32": {
        "image_size": 32,
        "patch_size": 4,
        "features": 64,
        "depth": 6,
        "num_heads": 4,
        "mlp_ratio": 2.0,
        "pool_every": 3,
    },
    "hvt_tiny_1": {"features": 192, "num_heads": 3},
    "hvt_small_0": _SMALL | {"pool_every": None},
    "hvt_small_1": _SMALL,
    "hvt_small_2": _SMALL | {"pool_every": 6},
    "hvt_small_3": _SMALL | {"pool_every": 4},
    "hvt_small_4": _SMALL | {"pool_every": 3},
}

# Of the authors' code, which always pools: small_0 can't be made with it.
PARAMETERS = {
    "hvt_tiny_1": 5_735_656,
    "hvt_small_1": 22_087_144,
    "hvt_small_2": 22_105_576,
    "hvt_small_3": 22_114_408,
    "hvt_small_4": 22_118_632,
}

RULES = {
    "hvt": Naming(
        rules=(
            ("patch_embed.proj", "patch_embed"),
            ("pos_embed", "position.table", Rearrange("1 (h w) d -> h w d")),
            ("blocks.{i}.norm1", "blocks.{i}.mixer_norm"),
            ("blocks.{i}.attn.qkv", tuple(f"blocks.{{i}}.mixer.{part}" for part in ("query", "key", "value")), Split()),
            ("blocks.{i}.attn.proj", "blocks.{i}.mixer.out"),
            ("blocks.{i}.norm2", "blocks.{i}.channel_norm"),
            ("blocks.{i}.mlp.fc1", "blocks.{i}.channel.up"),
            ("blocks.{i}.mlp.fc2", "blocks.{i}.channel.down"),
            ("blocks.{i}.pos_embed", "blocks.reductions.{i}.position.table"),
            ("norm", "norm"),
            ("head", "head"),
        ),
        tables=("position.table", "blocks.reductions.{i}.position.table"),
    )
}

register_family(
    "hvt",
    HVT,
    HVTConfig,
    VARIANTS,
    our_choice=("hvt_nano_patch4_32",),
    parameters=PARAMETERS,
    aliases={"hvt_small_4": ("scale_hvt_ti_4",)},
    rules=RULES,
    paper=(157,),
)
