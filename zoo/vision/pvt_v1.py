"""PVT: Pyramid Vision Transformer, a Versatile Backbone for Dense Prediction without Convolutions (Wang et al., ICCV
2021, arXiv:2102.12122).

    image -> patches of 4, LN, + positions -> stage 1 -> patches of 2, LN, + positions -> stage 2 -> ... -> stage 4 ->
    LN -> head

    block: x = x + SRA(LN(x));  x = x + MLP(LN(x))

SRA is attention to a reduced map: patches of 8, 4 and 2 tokens a side become one token. The last stage has a class
token, which the head reads, and attention to all of its tokens. Top-1 accuracy on ImageNet-1k at 224: tiny 75.1, small
79.8, medium 81.2, large 81.7 %. ``pvt_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from layers.broadcast import broadcast, widened
from layers.combinators import bidirectional, on_grid, on_sequence
from layers.drop import Dropout
from layers.extra_tokens import ExtraTokens
from layers.initializers import truncated_normal
from layers.mixer import Mixer, MixerSpec, Place
from layers.mlp import MLP
from layers.module import Module
from layers.norm import create_norm
from layers.patch import PatchEmbed
from layers.position import LearnedPositions
from layers.tokens import Tokens
from zoo.backbones.classifier import check_images
from zoo.backbones.pyramid import Pyramid, PyramidConfig, Stage
from zoo.naming import Each, Naming, Rearrange, Split
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class PVTConfig(PyramidConfig):
    """Hyper-parameters of PVT.

    Attributes:
      patch_size: side in pixels of the first patches; those between stages have 2 x 2 tokens.
      reductions: tokens along each side of a patch that attention sees as one token, in each stage but the last.
      mlp_ratios: hidden width of the MLP / features, in each stage.
    """

    patch_size: int = 4
    features: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2)
    mlp_ratios: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0)
    drop_path: float = 0.1


class BilinearPositions(LearnedPositions):
    """A learned vector for each cell of a grid, resampled as PyTorch's ``interpolate(mode="bilinear")``."""

    def resampled(self, table: jax.Array, grid: tuple[int, int]) -> jax.Array:
        if tuple(table.shape[:2]) == tuple(grid):
            return table
        return jax.image.resize(widened(table), (*grid, table.shape[2]), "bilinear", antialias=False).astype(
            table.dtype
        )


class Embedding(Module):
    """Patches, a norm, and positions. Parameters: ``patches`` (with ``norm``), ``position.table``."""

    def __init__(
        self,
        patch_size: int,
        in_features: int,
        features: int,
        grid: tuple[int, int],
        config: PVTConfig,
        *,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = {"dtype": config.dtype, "param_dtype": config.param_dtype, "rngs": rngs}
        self.patches = PatchEmbed(patch_size, in_features, features, norm="layer", **common)
        self.position = BilinearPositions(grid, features, param_dtype=config.param_dtype, rngs=rngs)
        self.dropout = Dropout(config.dropout, rngs=rngs) if config.dropout else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, in_features) to (batch, height / patch, width / patch, features)."""
        x = self.patches(x)
        x = x + broadcast(self.position((x.shape[1], x.shape[2])), x.shape, x.dtype)
        return x if self.dropout is None else self.dropout(x)


class ClassStage(Stage):
    """A stage whose blocks see a class token before the tokens of the map. Parameters also: ``class_token``,
    ``class_position``.
    """

    undecayed = ("class_token", "class_position")

    def __init__(self, downsample: Any, blocks: Any, features: int, *, param_dtype: Any, rngs: nnx.Rngs):
        super().__init__(downsample, blocks)
        init = truncated_normal(0.02)
        self.class_token = nnx.Param(init(rngs.params(), (1, features), param_dtype))
        self.class_position = nnx.Param(init(rngs.params(), (1, features), param_dtype))
        self.extra = ExtraTokens(1)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.apart(x)[1]

    def apart(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The class token (batch, features) after all blocks, and the map."""
        x = x if self.downsample is None else self.downsample(x)
        batch, *grid, features = x.shape
        learned = widened(self.class_token[...]) + widened(self.class_position[...])
        tokens, known = self.extra.put(x.reshape(batch, -1, features), learned, Tokens(grid=(grid[0], grid[1])))
        patches, classes = self.extra.take(self.blocks(tokens, known)[0])
        return classes[:, 0], patches.reshape(x.shape)


class PVT(Pyramid):
    """PVT; names as in :class:`Pyramid`, and those of :class:`Embedding` and :class:`ClassStage`."""

    config: PVTConfig

    @property
    def _last(self) -> int:
        return len(self.config.depths) - 1

    def grid_of(self, stage: int) -> tuple[int, int]:
        side, patch = self.config.image_size, self.config.patch_size * 2**stage
        if side % patch:
            raise ValueError(
                f"stage {stage} cuts images into patches of {patch}x{patch} pixels: image_size={side} must be "
                f"divisible by {patch}"
            )
        return side // patch, side // patch

    def own_mixer(self, place: Place) -> MixerSpec:
        if place.stage == self._last:
            return "attention"
        return {"name": "spatial_reduction", "stride": self.config.reductions[place.stage or 0]}

    def make_mixer(self, place: Place, *, rngs: nnx.Rngs, **_: Any) -> Mixer:  # type: ignore[override]
        """The mixer of a block; in the last stage one that takes the class token too.

        Raises:
          ValueError: a mixer of the last stage that takes only grids.
        """
        features = self._width(place)
        mixer = bidirectional(self.mixer_spec(place), features, place=place, rngs=rngs)
        if place.stage != self._last:
            return on_grid(mixer, features, rngs=rngs)
        return mixer if "image" in mixer.layouts else on_sequence(mixer)

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        features = self._width(place)
        hidden = int(features * self.config.mlp_ratios[place.stage or 0])
        return MLP(features, hidden, dropout=place.dropout, **place.dtypes, rngs=rngs)

    def make_stem(self, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        return Embedding(c.patch_size, c.in_channels, c.features[0], self.grid_of(0), c, rngs=rngs)

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        return Embedding(2, c.features[stage - 1], c.features[stage], self.grid_of(stage), c, rngs=rngs)

    def make_stage(self, stage: int, *, rngs: nnx.Rngs) -> Stage:
        made = super().make_stage(stage, rngs=rngs)
        if stage != self._last:
            return made
        c = self.config
        return ClassStage(made.downsample, made.blocks, c.features[stage], param_dtype=c.param_dtype, rngs=rngs)

    def make_norm(self, *, rngs: nnx.Rngs) -> Any:
        c = self.config
        return create_norm("layer", c.features[-1], epsilon=1e-6, dtype=c.dtype, param_dtype=c.param_dtype, rngs=rngs)

    def pooled(self, images: jax.Array) -> jax.Array:
        check_images(images, self.config.in_channels)
        x, (*stages, last) = images, self.stages
        assert isinstance(last, ClassStage)
        for stage in stages:
            x = stage(x)
        return self.norm(last.apart(x)[0])


VARIANTS: dict[str, dict[str, Any]] = {
    # 8x8 and 4x4 tokens from 32x32 pixels.
    "pvt_nano": {
        "image_size": 32,
        "features": (48, 96),
        "depths": (2, 2),
        "num_heads": (3, 6),
        "reductions": (2,),
        "mlp_ratios": (2.0, 2.0),
    },
    "pvt_tiny": {},
    "pvt_small": {"depths": (3, 4, 6, 3)},
    "pvt_medium": {"depths": (3, 4, 18, 3)},
    "pvt_large": {"depths": (3, 8, 27, 3), "drop_path": 0.3},
}

# Of the authors' code.
PARAMETERS = {
    "pvt_tiny": 13_229_288,
    "pvt_small": 24_485_864,
    "pvt_medium": 44_208_104,
    "pvt_large": 61_369_320,
}

_MAP = Rearrange("1 (h w) d -> h w d")


def _stage(stage: int, last: bool) -> list[tuple[Any, ...]]:
    """The authors count stages from 1."""
    theirs, ours = f"block{stage + 1}.{{b}}", f"stages.{stage}.blocks.{{b}}"
    parts = f"{ours}.mixer" if last else f"{ours}.mixer.attention"
    table = f"stages.{stage}.downsample.position.table"
    both = Split(1), Each((Rearrange("1 n d -> n d"), _MAP))
    return [
        (f"patch_embed{stage + 1}.proj", f"stages.{stage}.downsample.patches"),
        (f"patch_embed{stage + 1}.norm", f"stages.{stage}.downsample.patches.norm"),
        (f"pos_embed{stage + 1}", *(((f"stages.{stage}.class_position", table), *both) if last else (table, _MAP))),
        *([("cls_token", f"stages.{stage}.class_token", Rearrange("1 n d -> n d"))] if last else []),
        (f"{theirs}.norm1", f"{ours}.mixer_norm"),
        (f"{theirs}.attn.q", f"{parts}.query"),
        (f"{theirs}.attn.kv", (f"{parts}.key", f"{parts}.value"), Split()),
        (f"{theirs}.attn.sr", f"{ours}.mixer.reduction"),
        (f"{theirs}.attn.norm", f"{ours}.mixer.reduction.norm"),
        (f"{theirs}.attn.proj", f"{parts}.out"),
        (f"{theirs}.norm2", f"{ours}.channel_norm"),
        (f"{theirs}.mlp.fc1", f"{ours}.channel.up"),
        (f"{theirs}.mlp.fc2", f"{ours}.channel.down"),
    ]


def _rules(stages: int) -> dict[str, Naming]:
    rules = [rule for stage in range(stages) for rule in _stage(stage, stage == stages - 1)]
    tables = tuple(f"stages.{stage}.downsample.position.table" for stage in range(stages))
    return {"pvt": Naming([*rules, ("norm", "norm"), ("head", "head")], tables=tables)}


for _stages in (2, 4):
    register_family(
        "pvt_v1",
        PVT,
        PVTConfig,
        {name: options for name, options in VARIANTS.items() if (2 if "nano" in name else 4) == _stages},
        our_choice=("pvt_nano",),
        parameters=PARAMETERS,
        rules=_rules(_stages),
    )
