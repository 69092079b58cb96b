"""S4D as a classifier of pixel sequences: On the Parameterization and Initialization of Diagonal State Space Models (Gu
et al., 2022, arXiv:2206.11893).

    pixels in row-major order -> linear -> N x [x = x + S4D(norm(x))] -> norm -> average -> head

read in both directions, without an MLP: the S4D layer ends in a linear map with a GLU. The position
table and the pre-norm blocks are the backbone's; the paper's models have neither. Sizes are our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from layers.mixer import MixerSpec, Place
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class S4DPixelsConfig(IsotropicConfig):
    """Hyper-parameters: those of the backbone, with pixels for patches and S4D for attention."""

    mixer: MixerSpec | None = "s4d"
    num_classes: int = 10
    image_size: int = 32
    patch_size: int = 1
    class_token: bool = False
    pool: str = "average"  # type: ignore[assignment]


class S4DPixels(Isotropic):
    """The classifier; names as in :class:`Isotropic`."""

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> None:  # type: ignore[override]
        return None


VARIANTS: dict[str, dict[str, Any]] = {"s4d_pixels_nano": {"features": 64, "depth": 4, "num_heads": 4}}

register_family("s4d_pixels", S4DPixels, S4DPixelsConfig, VARIANTS, our_choice=tuple(VARIANTS), paper=(123,))
