"""The pyramid image backbone: stages of blocks, each at half the resolution of the one before.

    image -> stem -> blocks -> (downsample -> blocks) x 3 -> norm -> average pool -> head

BiFormer, MaxViT, Swin and similar models are this class with their own stem, blocks and downsampling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.combinators import bidirectional, on_grid
from layers.mixer import Mixer, MixerSpec
from layers.module import Module
from layers.stack import Stack, drop_path_rates
from zoo.backbones.classifier import Classifier, check_images, make_head
from zoo.registry import ModelConfig


@dataclasses.dataclass(frozen=True)
class PyramidConfig(ModelConfig):
    """Hyper-parameters of a pyramid image model.

    Attributes:
      image_size: pixels of the square image that it is usually given.
      features, depths, num_heads: of each stage.
    """

    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 224
    features: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 8, 2)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)


class Stage(Module):
    """One resolution: ``downsample`` (the stem, for the first stage; None where the first block shrinks the map), then ``blocks``."""

    def __init__(self, downsample: Callable[[jax.Array], jax.Array] | None, blocks: Stack):
        self.downsample, self.blocks = downsample, blocks

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, in_features) to (batch, height', width', features)."""
        return self.blocks(x if self.downsample is None else self.downsample(x))[0]


class Pyramid(Classifier):
    """Base of pyramid models. Names: ``stages.S.downsample``, ``stages.S.blocks.N``, ``norm``, ``head``.

    A subclass gives ``make_downsample``, ``make_block`` and ``make_norm`` (and ``pool``, where the norm is not the last step
    before the mean), and names its own mixer of a stage in ``own_mixer``; the configuration's ``mixer`` or ``pattern`` replaces it.
    """

    def __init__(self, config: PyramidConfig, *, rngs: nnx.Rngs):
        c = config
        rates: Iterable[float | None] = iter(drop_path_rates(c.drop_path, sum(c.depths)))
        self.config = c
        stages = []
        for stage, depth in enumerate(c.depths):
            downsample = self.make_downsample(stage, rngs=rngs)
            blocks = [self.make_block(stage, index, next(rates), rngs=rngs) for index in range(depth)]  # type: ignore[call-overload]
            stages.append(Stage(downsample, Stack(blocks, remat=c.remat, scan=c.scan)))
        self.stages = nnx.List(stages)
        self.num_features = c.features[-1]
        self.norm = self.make_norm(rngs=rngs)
        self.head = make_head(self.num_features, c.num_classes, c, rngs)

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> Any:
        """The module that brings the image (stage 0) or the last stage's map to this stage's size and features; None leaves it to the first block."""
        raise NotImplementedError

    def make_block(self, stage: int, index: int, drop_path: float | None, *, rngs: nnx.Rngs) -> Any:
        """A block of a stage: a :class:`layers.Block`, or a module that is called as one."""
        raise NotImplementedError

    def make_norm(self, *, rngs: nnx.Rngs) -> Callable[[jax.Array], jax.Array]:
        """The norm before the head."""
        raise NotImplementedError

    def own_mixer(self, stage: int) -> MixerSpec:
        """The architecture's own mixer in a stage."""
        raise NotImplementedError

    def make_mixer(self, stage: int, index: int, *, within: Mapping[str, Any] | None = None, rngs: nnx.Rngs) -> Mixer:
        """The mixer of a block: the user's if given, else the architecture's, adapted to grids; as ``inner`` of the combinator ``within``, if any."""
        c = self.config
        specs = c.pattern or (c.mixer if c.mixer is not None else self.own_mixer(stage),)
        hints: dict[str, Any] = {"num_heads": c.num_heads[stage], "dropout": c.dropout, "dtype": c.dtype, "param_dtype": c.param_dtype}
        features = c.features[stage]
        spec = specs[index % len(specs)]
        return on_grid(bidirectional({**within, "inner": spec} if within else spec, features, hints=hints, rngs=rngs), features, rngs=rngs)

    def features(self, images: jax.Array) -> list[jax.Array]:
        """The map after each stage: (batch, height, width, features) each."""
        check_images(images, self.config.in_channels)
        x, maps = images, []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def pooled(self, images: jax.Array) -> jax.Array:
        return self.pool(self.features(images)[-1])

    def pool(self, x: jax.Array) -> jax.Array:
        """From the last stage's map (batch, height, width, features) to what the head sees."""
        return jnp.mean(self.norm(x), axis=(1, 2))

    def depth_of(self, path: list[str]) -> int:
        if path[0] != "stages":
            return sum(self.config.depths) + 1
        before = sum(self.config.depths[: int(path[1])])
        return before + (int(path[3]) + 1 if path[2] == "blocks" else 0)
