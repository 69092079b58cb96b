"""ViT: An Image is Worth 16x16 Words (Dosovitskiy et al., 2021)."""

from __future__ import annotations

from typing import Any

from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.registry import register_family

VARIANTS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"features": 192, "num_heads": 3},
    "vit_base_patch16_224": {},
    "vit_nano_patch4_32": {"image_size": 32, "patch_size": 4, "features": 64, "depth": 6, "num_heads": 4, "mlp_ratio": 2.0},
}

register_family("vit", Isotropic, IsotropicConfig, VARIANTS, our_choice=("vit_nano_patch4_32",), paper=(156,))
