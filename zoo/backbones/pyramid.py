"""The pyramid image backbone: stages of blocks, each at half the resolution of the one before.

    image -> stem -> blocks -> (downsample -> blocks) x 3 -> norm -> average pool -> head

BiFormer, MaxViT, Swin and similar models are this class with their own stem, blocks and downsampling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.combinators import bidirectional, on_grid
from layers.mixer import Mixer, Place
from layers.module import Module
from layers.stack import Stack
from zoo.backbones.classifier import Classifier, check_images
from zoo.registry import ModelConfig


@dataclasses.dataclass(frozen=True)
class PyramidConfig(ModelConfig):
    """Hyper-parameters of a pyramid image model.

    Attributes:
      image_size: side in pixels of the usual square image.
      features, depths, num_heads: of each stage.
    """

    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 224
    features: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 8, 2)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)


class Stage(Module):
    """One resolution: ``downsample`` (the stem, for the first stage; None where the first block shrinks the map), then
    ``blocks``, then ``norm``, if any."""

    def __init__(
        self, downsample: Callable[[jax.Array], jax.Array] | None, blocks: Stack, norm: nnx.Module | None = None
    ):
        self.downsample, self.blocks = downsample, blocks
        if norm is not None:
            self.norm = norm

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, in_features) to (batch, height', width', features)."""
        x = self.blocks(x if self.downsample is None else self.downsample(x))[0]
        norm: Any = getattr(self, "norm", None)
        return x if norm is None else norm(x)


class Pyramid(Classifier):
    """Base of pyramid models. Names: ``stages.S.downsample``, ``stages.S.blocks.N``, ``stages.S.norm``, ``norm``,
    ``head``.

    Besides the hooks of :class:`Model`, a subclass overrides ``make_stem``, ``make_downsample`` and ``make_norm``, if
    needed ``make_stage``, ``make_stage_norm`` and ``make_head``, and ``pool`` if the norm is not the last step before
    the mean.
    """

    def __init__(self, config: PyramidConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.stages = nnx.List([self.make_stage(stage, rngs=rngs) for stage in range(len(c.depths))])
        self.num_features = self.pooled_features
        self.norm = self.make_norm(rngs=rngs)
        self.head = self.make_head(rngs=rngs)

    @property
    def pooled_features(self) -> int:
        """Features of the output of ``pool``."""
        return self.config.features[-1]

    @property
    def map_features(self) -> tuple[int, ...]:
        """Features of each map of ``features``."""
        return self.config.features

    @property
    def depths(self) -> tuple[int, ...]:
        return self.config.depths

    def make_stem(self, *, rngs: nnx.Rngs) -> Any:
        """The module that brings the image to the first stage's size and features; None leaves that to the first
        block."""
        raise NotImplementedError

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> Any:
        """The module that brings the previous stage's map to this stage's size and features; None leaves that to the
        first block.
        """
        return None

    def make_stage(self, stage: int, *, rngs: nnx.Rngs) -> Stage:
        """A stage: a :class:`Stage`, or a module that is called like one."""
        downsample = self.make_downsample(stage, rngs=rngs) if stage else self.make_stem(rngs=rngs)
        return Stage(downsample, self.make_stack(stage, rngs=rngs), self.make_stage_norm(stage, rngs=rngs))

    def make_stage_norm(self, stage: int, *, rngs: nnx.Rngs) -> Any:
        """The norm at the end of a stage; None for none."""
        return None

    def make_norm(self, *, rngs: nnx.Rngs) -> Any:
        """The norm before the head; None for none."""
        return None

    def make_mixer(self, place: Place, *, within: Mapping[str, Any] | None = None, rngs: nnx.Rngs) -> Mixer:
        """The mixer of a block: the user's if given, else the architecture's, adapted to grids, and wrapped as
        ``inner`` of the combinator ``within``, if given."""
        spec, features = self.mixer_spec(place), self._width(place)
        spec = {**within, "inner": spec} if within else spec
        return on_grid(bidirectional(spec, features, place=place, rngs=rngs), features, rngs=rngs)

    def features(
        self, images: jax.Array, indices: Sequence[int] | None = None, *, norm: bool = False
    ) -> list[jax.Array]:
        """The map after each stage: (batch, height, width, features) each.

        Args:
          images: (batch, height, width, channels).
          indices: of the stages; default: all.
          norm: apply the final norm to the last stage's map.
        """
        check_images(images, self.config.in_channels)
        x, maps = images, []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        if norm and self.norm is not None:
            maps[-1] = self.norm(x)
        return maps if indices is None else [maps[i] for i in indices]

    def pooled(self, images: jax.Array) -> jax.Array:
        return self.pool(self.features(images)[-1])

    def pool(self, x: jax.Array) -> jax.Array:
        """Maps the last stage's map (batch, height, width, features) to the input of the head, (batch, features)."""
        return jnp.mean(x if self.norm is None else self.norm(x), axis=(1, 2))

    def depth_of(self, path: list[str]) -> int:
        if path[0] != "stages":
            return sum(self.config.depths) + 1
        before = sum(self.config.depths[: int(path[1])])
        inside = {"blocks": lambda: int(path[3]) + 1, "norm": lambda: self.config.depths[int(path[1])]}
        return before + inside.get(path[2], lambda: 0)()
