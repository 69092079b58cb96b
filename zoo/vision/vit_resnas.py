"""ViT-ResNAS: Searching for Efficient Multi-Stage Vision Transformers (Liao et al., 2021, arXiv:2109.00642).

    image -> three 3x3 convolutions, the first of stride 2, the others a residual branch -> patches of 7x7
          -> + positions -> stage 1 -> residual reduction -> stage 2 -> residual reduction -> stage 3
          -> norm -> class token -> linear

A ViT of 16x16, 8x8 and 4x4 tokens from 224 pixels. Between stages a convolution reduces the tokens to a quarter, and
means of 2x2 tokens are added (:class:`layers.reduction.ResidualReduction`); the class token goes through a linear
layer. The heads and the hidden width of each block were found by evolutionary search in a super-network. Published for
ImageNet-1k: tiny 80.8 % top-1, 1.8 G multiply-adds; small 81.7 %, 2.8 G; medium 82.4 %, 4.5 G. ``vit_resnas_nano`` is
our choice. The head for patches in the authors' files, which is only for training, is left out.

With ``sampled`` the model is a super-network: in training each group of a batch goes through a sub-network, whose
blocks have only the first of the heads and hidden features, drawn block by block. :mod:`zoo.vision.vit_resnas_search`
finds the best sub-network within a limit of multiply-adds. The authors also draw the widths of stages and leave out
blocks; here these are fixed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from layers.attention.multi_head import MultiHeadAttention
from layers.drop import ChannelDrop
from layers.mixer import MixerSpec, Place
from layers.mlp import MLP
from layers.module import Module
from layers.patch import ConvNorm, PatchEmbed
from layers.reduction import ReductionSpec
from layers.sequential import Sequential
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Each, Naming, Rearrange, Split
from zoo.registry import register_family

Blocks = tuple[tuple[int, int], ...]
"""For each block of a stage, its heads and the hidden width of its MLP."""


@dataclasses.dataclass(frozen=True)
class ViTResNASConfig(IsotropicConfig):
    """Hyper-parameters of ViT-ResNAS.

    Attributes:
      depth: number of blocks, the first ones of ``stages``.
      features: of the first stage.
      widths: features of the later stages.
      stages: for each stage, the heads and the hidden width of each block.
      head_dims: features of a head, in each stage; all heads together may have more or fewer than tokens.
      stem: features of the convolutions.
      sampled: number of sub-networks that a batch trains; 0 for none, which trains the network itself.
      shares: of the heads and of the hidden features of a block, those that sub-networks may have, rounded up.
    """

    patch_size: int = 14
    widths: tuple[int, ...] = ()
    stages: tuple[Blocks, ...] = ()
    head_dims: tuple[int, ...] = (32, 48, 64)
    stem: int = 24
    sampled: int = 0
    shares: tuple[float, ...] = (0.5, 0.625, 0.75, 0.875, 1.0)

    def counts(self, largest: int) -> tuple[int, ...]:
        """The numbers of heads, or of hidden features, that a block of at most ``largest`` may have, ascending.

        Raises:
          ValueError: the shares do not end with 1, or one is not positive.
        """
        if not self.shares or max(self.shares) != 1 or min(self.shares) <= 0:
            raise ValueError(f"shares= are above 0 and up to 1, the network itself; got {self.shares}")
        return tuple(sorted({math.ceil(share * largest) for share in self.shares}))


class SampledHeads(MultiHeadAttention):
    """Attention of which, in training, a part of the examples has only the first heads."""

    def __init__(self, features: int, *, kept: Sequence[int], groups: int, **options: Any):
        """Args:
        kept, groups: as in :class:`layers.drop.ChannelDrop`, in heads.
        """
        super().__init__(features, **options)
        self.drop = ChannelDrop([count * self.head_dim for count in kept], groups, rngs=options["rngs"])

    def finish(self, y: jax.Array) -> jax.Array:
        return super().finish(self.drop(y.reshape(*y.shape[:2], -1)))


class ResidualStem(Module):
    """Three convolutions, two of them a residual branch, and patches. Parts: ``first``, ``branch.0``, ``branch.1``,
    ``patches``.
    """

    def __init__(self, config: ViTResNASConfig, *, rngs: nnx.Rngs):
        c = config
        common: dict[str, Any] = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        conv: dict[str, Any] = {"activation": jax.nn.relu, "use_bias": False, **common}
        if c.patch_size % 2:
            raise ValueError(f"the first convolution halves the image: patch_size is even, got {c.patch_size}")
        self.first = ConvNorm(c.in_channels, c.stem, strides=2, **conv)
        self.branch = Sequential([ConvNorm(c.stem, c.stem, **conv) for _ in range(2)])
        self.patches = PatchEmbed(c.patch_size // 2, c.stem, c.features, **common)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patches of an image.

        Raises:
          ValueError: patches do not divide it.
        """
        return self.patches.grid(-(-height // 2), -(-width // 2))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, rows, columns, features)."""
        x = self.first(x)
        return self.patches(x + self.branch(x))


class ViTResNAS(Isotropic):
    """ViT-ResNAS; names as in :class:`Isotropic`, with ``blocks.reductions.N``."""

    config: ViTResNASConfig

    def _where(self, index: int) -> tuple[int, int]:
        """The stage of a block, and which of the stage's blocks it is."""
        for stage, blocks in enumerate(self.config.stages):
            if index < len(blocks):
                return stage, index
            index -= len(blocks)
        raise ValueError(f"depth={self.config.depth} is more than the blocks that stages= has")

    def width(self, index: int) -> int:
        c = self.config
        return (c.features, *c.widths)[self._where(min(index, c.depth - 1))[0]]

    def place(self, stage: int, index: int) -> Place:
        # Heads for a user's mixer must divide the features.
        heads, features = self._block(index)[0], self.width(index)
        fitting = max(count for count in range(1, heads + 1) if features % count == 0)
        return dataclasses.replace(super().place(stage, index), num_heads=fitting)

    def reduction_spec(self, index: int) -> ReductionSpec | None:
        c = self.config
        if c.reductions is not None:
            raise ValueError("the widths of ViT-ResNAS change with its own reductions: leave reductions= out")
        if index + 1 >= c.depth or self._where(index)[0] == self._where(index + 1)[0]:
            return None
        return {"name": "residual_reduction", "out_features": self.width(index + 1), "norm_epsilon": c.norm_epsilon}

    def own_mixer(self, place: Place) -> MixerSpec:
        index = place.index or 0
        c, heads, head_dim = self.config, self._block(index)[0], self.config.head_dims[self._where(index)[0]]
        options = {"num_heads": heads, "head_dim": head_dim, "use_bias": c.qkv_bias}
        if c.sampled:
            return functools.partial(SampledHeads, kept=c.counts(heads), groups=c.sampled, **options)
        return {"name": "attention", **options}

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        c, hidden = self.config, self._block(place.index or 0)[1]

        def drop(features: int, *, rngs: nnx.Rngs, **_: Any) -> ChannelDrop:
            return ChannelDrop(c.counts(features), c.sampled, rngs=rngs)

        norm = drop if c.sampled else None
        return MLP(self._width(place), hidden, norm=norm, dropout=place.dropout, **place.dtypes, rngs=rngs)

    def make_stem(self, *, rngs: nnx.Rngs) -> ResidualStem:
        return ResidualStem(self.config, rngs=rngs)

    def _block(self, index: int) -> tuple[int, int]:
        stage, within = self._where(index)
        return self.config.stages[stage][within]


def _size(widths: Sequence[int], heads: str, hidden: str, **more: Any) -> dict[str, Any]:
    """A size, from the heads and hidden widths of the blocks, with stages separated by semicolons."""
    both = ([[int(n) for n in stage.split()] for stage in text.split(";")] for text in (heads, hidden))
    stages = tuple(tuple(zip(*stage, strict=True)) for stage in zip(*both, strict=True))
    depth, first = sum(map(len, stages)), stages[0][0][0]
    sizes = {"features": widths[0], "widths": tuple(widths[1:]), "stages": stages, "depth": depth, "num_heads": first}
    return {**sizes, **more}


# Of the authors' scripts/vit-sr-nas/searched_net.
_MEDIUM = _size(
    (240, 640, 880),
    "7 6 7 8 7 8 6; 10 14 14 16 14 16 16; 16 10 16 12 16 14",
    "960 960 800 960 880 880 800; 1120 1760 1920 1760 1440 1760 1920; 3200 3840 3840 3200 3520 3520",
)
VARIANTS: dict[str, dict[str, Any]] = {
    # 8x8 and 4x4 tokens from 32x32 pixels.
    "vit_resnas_nano": _size(
        (48, 96), "3 2; 4 3", "96 120; 160 192", head_dims=(16, 24), stem=12, image_size=32, patch_size=4
    ),
    "vit_resnas_tiny": _size(
        (176, 352, 704),
        "3 3 3 4 4; 10 8 8 8 10 10; 10 10 10 8 8",
        "704 576 640 576 704; 1408 1408 1280 1408 1280 1024; 2560 1792 2816 2816 2560",
        drop_path=0.2,
    ),
    "vit_resnas_small": _size(
        (220, 440, 880),
        "5 5 7 5 5 5; 10 10 10 10 12 12; 16 12 16 12 14",
        "880 880 800 720 720 720; 1760 1440 1920 1600 1600 1440; 3200 3200 2880 2240 2560",
        drop_path=0.3,
    ),
    "vit_resnas_medium": {**_MEDIUM, "drop_path": 0.3},
    "vit_resnas_medium_280": {**_MEDIUM, "drop_path": 0.75, "image_size": 280},
    "vit_resnas_medium_392": {**_MEDIUM, "drop_path": 0.75, "image_size": 392},
}

# Of the authors' code, without the head for patches.
PARAMETERS = {
    "vit_resnas_tiny": 40_793_552,
    "vit_resnas_small": 63_724_108,
    "vit_resnas_medium": 96_442_672,
    "vit_resnas_medium_280": 96_508_192,
    "vit_resnas_medium_392": 96_682_912,
}

_TABLE = Rearrange("1 (h w) d -> h w d")


def _rules(counts: tuple[int, ...]) -> dict[str, Naming]:
    """The authors' names for stages of ``counts`` blocks. They number reductions among the blocks."""
    rules: list[tuple[Any, ...]] = [
        ("tokens", "class_token", Rearrange("1 n d -> n d")),
        ("pos_embed", ("prefix_position", "position.table"), Split(1), Each((Rearrange("1 n d -> n d"), _TABLE))),
        ("patch_embed.conv1.conv", "patch_embed.first.conv"),
        ("patch_embed.conv1.bn", "patch_embed.first.norm"),
    ]
    for i in range(2):
        rules.append((f"patch_embed.conv{i + 2}.conv", f"patch_embed.branch.{i}.conv"))
        rules.append((f"patch_embed.conv{i + 2}.bn", f"patch_embed.branch.{i}.norm"))
    rules.append(("patch_embed.conv_proj", "patch_embed.patches"))
    index, tables = 0, ["position.table"]
    for stage, count in enumerate(counts):
        for i in range(index, index + count):
            theirs, ours = f"blocks.{i + stage}", f"blocks.{i}"
            parts = tuple(f"{ours}.mixer.{part}" for part in ("query", "key", "value"))
            rules += [
                (f"{theirs}.norm1", f"{ours}.mixer_norm"),
                (f"{theirs}.attn.qkv", parts, Split()),
                (f"{theirs}.attn.proj", f"{ours}.mixer.out"),
                (f"{theirs}.norm2", f"{ours}.channel_norm"),
                (f"{theirs}.mlp.fc1", f"{ours}.channel.up"),
                (f"{theirs}.mlp.fc2", f"{ours}.channel.down"),
            ]
        index += count
        theirs, ours = f"blocks.{index + stage}", f"blocks.reductions.{index - 1}"
        if stage + 1 < len(counts):
            rules += [
                (f"{theirs}.norm", f"{ours}.norm"),
                (f"{theirs}.patch_reduce", f"{ours}.conv"),
                (f"{theirs}.token_transform", f"{ours}.prefix_linear"),
                (f"{theirs}.pos_embed", f"{ours}.position.table", _TABLE),
            ]
            tables.append(f"{ours}.position.table")
    rules += [("norm", "norm"), ("cls_head", "head")]
    ignored = ("patch_head.weight", "patch_head.bias")
    return {"vit_resnas": Naming(rules=tuple(rules), tables=tuple(tables), ignore=ignored)}


def _counts(size: dict[str, Any]) -> tuple[int, ...]:
    """Blocks of each stage."""
    return tuple(len(blocks) for blocks in size["stages"])


for _kind in dict.fromkeys(map(_counts, VARIANTS.values())):
    register_family(
        "vit_resnas",
        ViTResNAS,
        ViTResNASConfig,
        {name: size for name, size in VARIANTS.items() if _counts(size) == _kind},
        our_choice=("vit_resnas_nano",),
        parameters=PARAMETERS,
        rules=_rules(_kind),
        paper=(136,),
    )
