"""Swin Transformer V2: Scaling Up Capacity and Resolution (Liu et al., CVPR 2022, arXiv:2111.09883).

    block: x = x + LN(Windowed(attention)(x));  x = x + LN(MLP(x))

Swin with the norms after the branches, at the end of merging too; with cosine attention, whose scale is learned for
each head; and with a position bias that an MLP computes from the logarithm of the offset, so that weights transfer to
other window sizes: "12to16" models were trained with windows of 12x12 tokens and fine-tuned with 16x16. Published for
ImageNet-1k: tiny 28 M parameters, 81.8 % top-1 at 256 pixels with windows of 8x8; small 50 M, 83.7 %; base 88 M, 84.2
%; pretrained on ImageNet-22k base has 87.1 % at 384 pixels and large, 197 M, 87.7 %.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from layers.initializers import zeros
from layers.mixer import Place
from layers.norm import LayerNorm
from layers.patch import PatchMerging
from layers.position import ContinuousPositionBias, log_offsets
from zoo.naming import Naming, Rearrange, Split
from zoo.registry import register_family
from zoo.vision.releases import parse_releases
from zoo.vision.swin import (
    ATTENTION,
    QUERY_KEY_VALUE,
    Swin,
    SwinConfig,
    attention_mask,
    named_as_authors,
    published_size,
    relative_position_index,
)


@dataclasses.dataclass(frozen=True)
class SwinV2Config(SwinConfig):
    """Hyper-parameters of Swin V2.

    Attributes:
      pretrained_window: tokens along each side of the windows that the weights of each stage were first trained with;
        None for those of the model.
      zero_init: whether the scales of the blocks' norms start at 0, so that blocks start as the identity.
    """

    image_size: int = 256
    window: int | tuple[int, ...] = 8
    pretrained_window: tuple[int, ...] | None = None
    zero_init: bool = True

    def pretrained_window_of(self, stage: int) -> tuple[int, int]:
        """Rows and columns of the windows of a stage that set the scale of offsets."""
        return self.window_of(stage) if self.pretrained_window is None else (self.pretrained_window[stage],) * 2


class SwinV2(Swin):
    """Swin V2; names as in :class:`Pyramid`."""

    config: SwinV2Config

    def own_attention(self, stage: int) -> dict[str, Any]:
        c = self.config
        first = c.pretrained_window_of(stage)
        bias = functools.partial(
            ContinuousPositionBias, c.window_of(stage), pretrained_window=first, param_dtype=c.param_dtype
        )
        return {"name": "attention", "qk_norm": "unit", "logit_scale": 10.0, "key_bias": False, "bias": bias}

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        return PatchMerging(c.features[stage - 1], c.features[stage], norm_first=False, **self._common(rngs))

    def block_options(self, place: Place) -> dict[str, Any]:
        norm = functools.partial(LayerNorm, scale_init=zeros) if self.config.zero_init else LayerNorm
        return {**super().block_options(place), "order": "res_post", "norm": norm}


_TINY, _SMALL, _BASE, _LARGE = (
    published_size(96, 6, 0.2),
    published_size(96, 18, 0.3),
    published_size(128, 18, 0.5),
    published_size(192, 18, 0.2),
)


def _fine_tuned(pixels: int) -> dict[str, Any]:
    """A model fine-tuned on larger images than those of its pretraining: 192 pixels, with windows of 12x12."""
    return {"image_size": pixels, "window": pixels // 16, "pretrained_window": (12, 12, 12, 6), "drop_path": 0.2}


# Names as in timm. Parameters of timm 1.0.31; those of the two of 192 pixels have the 21,841 classes of ImageNet-22k.
_PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "swinv2_tiny_window8_256": (_TINY, 28_347_154),
    "swinv2_tiny_window16_256": ({**_TINY, "window": 16}, 28_347_154),
    "swinv2_small_window8_256": (_SMALL, 49_728_418),
    "swinv2_small_window16_256": ({**_SMALL, "window": 16}, 49_728_418),
    "swinv2_base_window8_256": (_BASE, 87_918_816),
    "swinv2_base_window16_256": ({**_BASE, "window": 16}, 87_918_816),
    "swinv2_base_window12_192": (
        {**_BASE, "image_size": 192, "window": 12, "num_classes": 21841, "drop_path": 0.2},
        109_280_841,
    ),
    "swinv2_base_window12to16_192to256": ({**_BASE, **_fine_tuned(256)}, 87_918_816),
    "swinv2_base_window12to24_192to384": ({**_BASE, **_fine_tuned(384)}, 87_918_816),
    "swinv2_large_window12_192": ({**_LARGE, "image_size": 192, "window": 12, "num_classes": 21841}, 228_772_549),
    "swinv2_large_window12to16_192to256": ({**_LARGE, **_fine_tuned(256)}, 196_739_932),
    "swinv2_large_window12to24_192to384": ({**_LARGE, **_fine_tuned(384)}, 196_739_932),
}
VARIANTS: dict[str, dict[str, Any]] = {name: fields for name, (fields, _) in _PUBLISHED.items()}
PARAMETERS = {name: count for name, (_, count) in _PUBLISHED.items()}

# Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels, in windows of 4x4.
VARIANTS["swinv2_nano"] = {
    "image_size": 32,
    "features": (48, 96),
    "depths": (2, 2),
    "num_heads": (3, 6),
    "window": 4,
    "mlp_ratio": 2.0,
    "drop_path": 0.1,
}

RELEASES = parse_releases("""
swinv2_tiny_window8_256: ms_in1k 1000 imagenet 0.9 mit
swinv2_tiny_window16_256: ms_in1k 1000 imagenet 0.9 mit
swinv2_small_window8_256: ms_in1k 1000 imagenet 0.9 mit
swinv2_small_window16_256: ms_in1k 1000 imagenet 0.9 mit
swinv2_base_window8_256: ms_in1k 1000 imagenet 0.9 mit
swinv2_base_window16_256: ms_in1k 1000 imagenet 0.9 mit
swinv2_base_window12_192: ms_in22k 21841 imagenet 0.9 mit
swinv2_base_window12to16_192to256: ms_in22k_ft_in1k 1000 imagenet 0.9 mit
swinv2_base_window12to24_192to384: ms_in22k_ft_in1k 1000 imagenet 1.0 mit
swinv2_large_window12_192: ms_in22k 21841 imagenet 0.9 mit
swinv2_large_window12to16_192to256: ms_in22k_ft_in1k 1000 imagenet 0.9 mit
swinv2_large_window12to24_192to384: ms_in22k_ft_in1k 1000 imagenet 1.0 mit
""")


def relative_coords_table(config: SwinV2Config, where: Mapping[str, Any]) -> np.ndarray:
    """The input of the position bias's MLP: (1, 2 height - 1, 2 width - 1, 2) float32."""
    return log_offsets(config.window_of(where["s"]), config.pretrained_window_of(where["s"]))[None]


_ATTENTION: list[tuple[Any, ...]] = [
    ("q_bias", f"{ATTENTION}.query.bias"),
    ("v_bias", f"{ATTENTION}.value.bias"),
    ("qkv", QUERY_KEY_VALUE, Split()),
    ("logit_scale", f"{ATTENTION}.logit_scale", Rearrange("h 1 1 -> h")),
    ("cpb_mlp.0", f"{ATTENTION}.bias.offset_up"),
    ("cpb_mlp.2", f"{ATTENTION}.bias.offset_down"),
]
_BUFFERS: dict[str, Any] = {
    "layers.{s}.blocks.{b}.attn.relative_coords_table": relative_coords_table,
    "layers.{s}.blocks.{b}.attn.relative_position_index": relative_position_index,
    "layers.{s}.blocks.{b}.attn_mask": attention_mask,
}

RULES: dict[str, Naming] = {
    "timm": Naming(named_as_authors(_ATTENTION, "head.fc", at_end=False), ignore=tuple(_BUFFERS)),
    "microsoft": Naming(named_as_authors(_ATTENTION, "head", at_end=True), buffers=_BUFFERS),
}

register_family(
    "swinv2",
    SwinV2,
    SwinV2Config,
    VARIANTS,
    our_choice=("swinv2_nano",),
    parameters=PARAMETERS,
    releases=RELEASES,
    rules=RULES,
)
