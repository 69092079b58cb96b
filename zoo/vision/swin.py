"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (Liu et al., ICCV 2021, arXiv:2103.14030).

    image -> 4x4 patches, LN -> stage 1 -> merge 2x2 tokens -> stage 2 -> merge -> stage 3 -> merge -> stage 4 -> LN ->
    average pool -> head

    block: x = x + Windowed(attention)(LN(x));  x = x + MLP(LN(x))

Windows have 7x7 tokens, 12x12 at 384 pixels; every second block shifts them by half a window. Attention has a relative
position bias. Published for ImageNet-1k at 224: tiny 28 M parameters, 81.3 % top-1; small 50 M, 83.0 %; base 88 M, 83.5
%, and 84.5 % at 384; pretrained on ImageNet-22k base has 85.2 % and large, 197 M, 86.3 %, at 384 86.4 % and 87.3 %.

S3 (Chen et al., 2021, arXiv:2111.14725) searched for the window sizes, which are 14x14 tokens in some stages.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from layers.mixer import MixerSpec, Place
from layers.mlp import MLP
from layers.norm import create_norm
from layers.patch import PatchEmbed, PatchMerging
from layers.position import RelativePositionBias
from layers.tokens import grid_positions
from zoo.backbones.pyramid import Pyramid, PyramidConfig
from zoo.naming import Naming, Rearrange, Split
from zoo.registry import register_family
from zoo.vision.releases import parse_releases


@dataclasses.dataclass(frozen=True)
class SwinConfig(PyramidConfig):
    """Hyper-parameters of Swin.

    Attributes:
      patch_size: pixels along each side of a patch.
      window: tokens along each side of a window, one number or one for each stage. Where the map at ``image_size`` is
        smaller, the window is the whole map.
      mlp_ratio: hidden width of the MLP / features.
      norm_epsilon: of the norms of the blocks and before the head.
    """

    features: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    patch_size: int = 4
    window: int | tuple[int, ...] = 7
    mlp_ratio: float = 4.0
    norm_epsilon: float = 1e-5
    drop_path: float = 0.2

    def grid(self, stage: int) -> tuple[int, int]:
        """Rows and columns of a stage's tokens at ``image_size``."""
        side = -(-self.image_size // (self.patch_size * 2**stage))
        return side, side

    def window_of(self, stage: int) -> tuple[int, int]:
        """Rows and columns of a stage's windows."""
        side = self.window if isinstance(self.window, int) else self.window[stage]
        rows, columns = (min(side, size) for size in self.grid(stage))
        return rows, columns

    def shift_of(self, stage: int, index: int) -> tuple[int, int]:
        """Rows and columns by which a block's windows are shifted: half a window in every second block."""
        rows, columns = (side // 2 if index % 2 else 0 for side in self.window_of(stage))
        return rows, columns


class Swin(Pyramid):
    """Swin; names as in :class:`Pyramid`. A user's mixer replaces the windowed attention as a whole; give {"name":
    "windowed", ...} to keep windows.
    """

    config: SwinConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        c, stage, index = self.config, place.stage or 0, place.index or 0
        # Released weights were trained with padding that is attended to.
        options = {"window": c.window_of(stage), "shift": c.shift_of(stage, index), "padding": "zeros"}
        return {"name": "windowed", **options, "inner": self.own_attention(stage)}

    def own_attention(self, stage: int) -> dict[str, Any]:
        """The attention inside the windows of a stage, as a spec."""
        c = self.config
        return {
            "name": "attention",
            "bias": functools.partial(RelativePositionBias, c.window_of(stage), param_dtype=c.param_dtype),
        }

    def grid_of(self, stage: int) -> tuple[int, int]:
        return self.config.grid(stage)

    def make_stem(self, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        return PatchEmbed(c.patch_size, c.in_channels, c.features[0], norm="layer", **self._common(rngs))

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        return PatchMerging(c.features[stage - 1], c.features[stage], **self._common(rngs))

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        features = self._width(place)
        return MLP(features, int(features * self.config.mlp_ratio), dropout=place.dropout, **self._common(rngs))

    def block_options(self, place: Place) -> dict[str, Any]:
        return {"norm_epsilon": self.config.norm_epsilon}

    def make_norm(self, *, rngs: nnx.Rngs) -> Any:
        return create_norm("layer", self.config.features[-1], epsilon=self.config.norm_epsilon, **self._common(rngs))

    def _common(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype, "rngs": rngs}


def published_size(features: int, depth: int, drop_path: float) -> dict[str, Any]:
    """A published size, from the first stage's width, the third's number of blocks, and stochastic depth."""
    widths = tuple(features * 2**stage for stage in range(4))
    return {
        "features": widths,
        "num_heads": tuple(width // 32 for width in widths),
        "depths": (2, 2, depth, 2),
        "drop_path": drop_path,
    }


# Stochastic depth as in the authors' ImageNet-1k recipes; large was only fine-tuned there.
_TINY, _SMALL, _BASE, _LARGE = (
    published_size(96, 6, 0.2),
    published_size(96, 18, 0.3),
    published_size(128, 18, 0.5),
    published_size(192, 18, 0.2),
)
_LARGER: dict[str, Any] = {"image_size": 384, "window": 12}

# Names as in timm. Parameters of timm 1.0.31.
_PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "swin_tiny_patch4_window7_224": (_TINY, 28_288_354),
    "swin_small_patch4_window7_224": (_SMALL, 49_606_258),
    "swin_base_patch4_window7_224": (_BASE, 87_768_224),
    "swin_base_patch4_window12_384": ({**_BASE, **_LARGER}, 87_903_584),
    "swin_large_patch4_window7_224": (_LARGE, 196_532_476),
    "swin_large_patch4_window12_384": ({**_LARGE, **_LARGER}, 196_735_516),
    "swin_s3_tiny_224": ({**_TINY, "window": (7, 7, 14, 7)}, 28_328_674),
    "swin_s3_small_224": ({**_SMALL, "window": (14, 14, 14, 7)}, 49_737_298),
    "swin_s3_base_224": ({**published_size(96, 30, 0.5), "window": (7, 7, 14, 7)}, 71_125_762),
}
VARIANTS: dict[str, dict[str, Any]] = {name: fields for name, (fields, _) in _PUBLISHED.items()}
PARAMETERS = {name: count for name, (_, count) in _PUBLISHED.items()}

# Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels, in windows of 4x4.
VARIANTS["swin_nano"] = {
    "image_size": 32,
    "features": (48, 96),
    "depths": (2, 2),
    "num_heads": (3, 6),
    "window": 4,
    "mlp_ratio": 2.0,
    "drop_path": 0.1,
}

RELEASES = parse_releases("""
swin_tiny_patch4_window7_224: ms_in1k 1000 imagenet 0.9 mit; ms_in22k_ft_in1k 1000 imagenet 0.9 mit
swin_tiny_patch4_window7_224: ms_in22k 21841 imagenet 0.9 mit
swin_small_patch4_window7_224: ms_in22k_ft_in1k 1000 imagenet 0.9 mit; ms_in1k 1000 imagenet 0.9 mit
swin_small_patch4_window7_224: ms_in22k 21841 imagenet 0.9 mit
swin_base_patch4_window7_224: ms_in22k_ft_in1k 1000 imagenet 0.9 mit; ms_in1k 1000 imagenet 0.9 mit
swin_base_patch4_window7_224: ms_in22k 21841 imagenet 0.9 mit
swin_base_patch4_window12_384: ms_in22k_ft_in1k 1000 imagenet 1.0 mit; ms_in1k 1000 imagenet 1.0 mit
swin_base_patch4_window12_384: ms_in22k 21841 imagenet 1.0 mit
swin_large_patch4_window7_224: ms_in22k_ft_in1k 1000 imagenet 0.9 mit; ms_in22k 21841 imagenet 0.9 mit
swin_large_patch4_window12_384: ms_in22k_ft_in1k 1000 imagenet 1.0 mit; ms_in22k 21841 imagenet 1.0 mit
swin_s3_tiny_224: ms_in1k 1000 imagenet 0.9 mit
swin_s3_small_224: ms_in1k 1000 imagenet 0.9 mit
swin_s3_base_224: ms_in1k 1000 imagenet 0.9 mit
""")


def relative_position_index(config: SwinConfig, where: Mapping[str, Any]) -> np.ndarray:
    """For each query and key of a window, the row of the released table of biases: (tokens, tokens) int64."""
    height, width = config.window_of(where["s"])
    cells = grid_positions(height, width).astype(np.int64)
    offset = cells[:, None] - cells[None] + (height - 1, width - 1)
    return offset[..., 0] * (2 * width - 1) + offset[..., 1]


def attention_mask(config: SwinConfig, where: Mapping[str, Any]) -> np.ndarray | None:
    """The mask that the authors add to the logits of shifted windows, 0 or -100: (windows, tokens, tokens) float32;
    None where nothing is shifted.
    """
    grid, window, shift = config.grid(where["s"]), config.window_of(where["s"]), config.shift_of(where["s"], where["b"])
    if window == grid or not any(shift) or any(size % side for size, side in zip(grid, window, strict=True)):
        return None
    rows, columns = (np.arange(size) >= size - moved for size, moved in zip(grid, shift, strict=True))
    sides = 2 * rows[:, None] + columns
    windows = (
        sides.reshape(grid[0] // window[0], window[0], grid[1] // window[1], window[1])
        .swapaxes(1, 2)
        .reshape(-1, window[0] * window[1])
    )
    return np.where(windows[:, None] == windows[..., None], 0.0, -100.0).astype(np.float32)


OURS = "stages.{s}.blocks.{b}"
ATTENTION = f"{OURS}.mixer.inner.inner"
QUERY_KEY_VALUE = tuple(f"{ATTENTION}.{part}" for part in ("query", "key", "value"))


def merging(stage: str, *, at_end: bool) -> list[tuple[str, str]]:
    """Rules for the merging of tokens, which the authors place at the end of the previous stage (``at_end``); ``stage``
    is the template of a stage.
    """
    return [
        (f"{stage.format(s=s - at_end)}.downsample.{part}", f"stages.{s}.downsample.{part}")
        for s in (1, 2, 3)
        for part in ("norm", "reduction")
    ]


def named_as_authors(attention: list[tuple[Any, ...]], head: str, *, at_end: bool) -> list[tuple[Any, ...]]:
    """The rules of the authors' names and of timm's, which differ in the head and in where tokens are merged."""
    theirs = "layers.{s}.blocks.{b}"
    return [
        ("patch_embed.proj", "stages.0.downsample"),
        ("patch_embed.norm", "stages.0.downsample.norm"),
        *merging("layers.{s}", at_end=at_end),
        (f"{theirs}.norm1", f"{OURS}.mixer_norm"),
        *((f"{theirs}.attn.{released}", *rest) for released, *rest in attention),
        (f"{theirs}.attn.proj", f"{ATTENTION}.out"),
        (f"{theirs}.norm2", f"{OURS}.channel_norm"),
        (f"{theirs}.mlp.fc1", f"{OURS}.channel.up"),
        (f"{theirs}.mlp.fc2", f"{OURS}.channel.down"),
        ("norm", "norm"),
        (head, "head"),
    ]


def _transformers(prefix: str, head: list[tuple[str, str]]) -> list[tuple[Any, ...]]:
    theirs = f"{prefix}encoder.layers.{{s}}.blocks.{{b}}"
    return [
        (f"{prefix}embeddings.patch_embeddings.projection", "stages.0.downsample"),
        (f"{prefix}embeddings.norm", "stages.0.downsample.norm"),
        *merging(f"{prefix}encoder.layers.{{s}}", at_end=True),
        (f"{theirs}.layernorm_before", f"{OURS}.mixer_norm"),
        *((f"{theirs}.attention.self.{part}", f"{ATTENTION}.{part}") for part in ("query", "key", "value")),
        (f"{theirs}.attention.self.relative_position_bias_table", f"{ATTENTION}.bias.table", TABLE_ROWS),
        (f"{theirs}.attention.output.dense", f"{ATTENTION}.out"),
        (f"{theirs}.layernorm_after", f"{OURS}.channel_norm"),
        (f"{theirs}.intermediate.dense", f"{OURS}.channel.up"),
        (f"{theirs}.output.dense", f"{OURS}.channel.down"),
        (f"{prefix}layernorm", "norm"),
        *head,
    ]


TABLE_ROWS = Rearrange("(h w) n -> h w n")
_TABLES = (f"{ATTENTION}.bias.table",)
_ATTENTION: list[tuple[Any, ...]] = [
    ("qkv", QUERY_KEY_VALUE, Split()),
    ("relative_position_bias_table", f"{ATTENTION}.bias.table", TABLE_ROWS),
]
_BUFFERS: dict[str, Any] = {
    "layers.{s}.blocks.{b}.attn.relative_position_index": relative_position_index,
    "layers.{s}.blocks.{b}.attn_mask": attention_mask,
}
# Older files of transformers and of timm have the buffers.
_INDEX = "encoder.layers.{s}.blocks.{b}.attention.self.relative_position_index"

RULES: dict[str, Naming] = {
    "timm": Naming(named_as_authors(_ATTENTION, "head.fc", at_end=False), tables=_TABLES, ignore=tuple(_BUFFERS)),
    "microsoft": Naming(named_as_authors(_ATTENTION, "head", at_end=True), tables=_TABLES, buffers=_BUFFERS),
    "transformers": Naming(
        _transformers("swin.", [("classifier", "head")]), tables=_TABLES, prefix="swin.", ignore=(f"swin.{_INDEX}",)
    ),
    "bare": Naming(_transformers("", []), tables=_TABLES, ignore=(_INDEX,)),
}

# Fields in transformers' config.json that weights do not show.
DESCRIBED: dict[str, Any] = {
    "norm_epsilon": lambda config: config.get("layer_norm_eps"),
    "num_heads": lambda config: tuple(config["num_heads"]) if "num_heads" in config else None,
}

register_family(
    "swin",
    Swin,
    SwinConfig,
    VARIANTS,
    our_choice=("swin_nano",),
    parameters=PARAMETERS,
    releases=RELEASES,
    rules=RULES,
    described=DESCRIBED,
)
