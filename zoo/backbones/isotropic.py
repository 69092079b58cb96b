"""The isotropic image backbone: patches become tokens, and every block sees the same number of them.

    image -> patches -> + positions, prefix tokens -> blocks -> norm -> pool -> head

ViT, DeiT and all whose blocks keep one resolution are this class with other hyper-parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.block import Block
from layers.combinators import bidirectional, on_grid
from layers.initializers import normal, truncated_normal
from layers.mixer import MixerSpec
from layers.mlp import MLP, GatedMLP, gelu
from layers.norm import create_norm
from layers.patch import PatchEmbed
from layers.position import LearnedPositions
from layers.stack import Stack, drop_path_rates
from zoo.backbones.classifier import Classifier, make_head
from zoo.backbones.pooling import AttentionPool
from zoo.registry import ModelConfig


@dataclasses.dataclass(frozen=True)
class IsotropicConfig(ModelConfig):
    """Hyper-parameters of an isotropic image model.

    Attributes:
      image_size: pixels of the square image that the position table is made for; others are resampled to.
      features, depth, num_heads, mlp_ratio: width of a token, blocks, attention heads, hidden width of the MLP / features.
      mlp: "gelu" or "swiglu"; for "swiglu" the hidden width is ``mlp_ratio * features`` of each of the two halves.
      class_token, registers: prefix tokens that stand before the patches.
      distilled: a second class token and head, averaged with the first outside training (DeiT).
      prefix_positions: whether the prefix tokens have positions of their own.
      pool: "token" (the class token), "average" (patches), or "attention" (a learned query).
      norm_after_pool: the final norm follows the pooling instead of preceding it.
      pre_norm: a norm before the first block (CLIP).
      qk_norm, qkv_bias, layer_scale: as in the blocks.
      antialias: how position tables are resampled.
    """

    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    features: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    mlp: Literal["gelu", "swiglu"] = "gelu"
    class_token: bool = True
    registers: int = 0
    distilled: bool = False
    prefix_positions: bool = True
    pool: Literal["token", "average", "attention"] = "token"
    norm_after_pool: bool = False
    pre_norm: bool = False
    qk_norm: bool = False
    qkv_bias: bool = True
    layer_scale: float | None = None
    antialias: bool = True


class Isotropic(Classifier):
    """An isotropic image model. Names: ``patch_embed``, ``position``, ``class_token``, ``register_tokens``, ``blocks.N``, ``norm``, ``head``."""

    def __init__(self, config: IsotropicConfig, *, rngs: nnx.Rngs):
        """Builds the model.

        A mixer that takes grids only gets the grid alone: no prefix tokens, and average pooling (``adapted`` says so).

        Raises:
          ValueError: a patch size that does not divide the image size, or pooling by a token that is not there.
        """
        c = config
        if c.image_size % c.patch_size:
            raise ValueError(f"image_size {c.image_size} must be divisible by the patch size {c.patch_size}")
        if c.pool == "token" and not c.class_token:
            raise ValueError('pool="token" needs class_token=True')
        own = {"name": "attention", "use_bias": c.qkv_bias, "out_bias": True, "qk_norm": "layer" if c.qk_norm else None}
        specs: Sequence[MixerSpec] = c.pattern or (c.mixer if c.mixer is not None else own,)
        common = {"dtype": c.dtype, "param_dtype": c.param_dtype}
        hints = {"num_heads": c.num_heads, "dropout": c.dropout, **common}
        self.patch_embed = PatchEmbed(c.patch_size, c.in_channels, c.features, use_bias=not c.pre_norm, **common, rngs=rngs)
        mixers = [bidirectional(specs[i % len(specs)], c.features, hints=hints, rngs=rngs) for i in range(c.depth)]
        self.grid = any("sequence" not in mixer.layouts for mixer in mixers)
        if self.grid:
            mixers = [on_grid(mixer, c.features, rngs=rngs) for mixer in mixers]
            self.adapted = "the mixer takes the grid alone: no prefix tokens, average pooling"
            c = dataclasses.replace(c, class_token=False, distilled=False, registers=0, pool="average" if c.pool == "token" else c.pool)

        def token(count: int, std: float = 1e-6) -> nnx.Param:
            return nnx.Param(normal(std)(rngs.params(), (count, c.features), c.param_dtype))

        self.class_token = token(1 + c.distilled) if c.class_token else None
        self.register_tokens = token(c.registers) if c.registers else None
        prefix = c.class_token * (1 + c.distilled)
        self.prefix_position = nnx.Param(truncated_normal(0.02)(rngs.params(), (prefix, c.features), c.param_dtype)) if prefix and c.prefix_positions else None
        side = c.image_size // c.patch_size
        self.position = LearnedPositions((side, side), c.features, antialias=c.antialias, param_dtype=c.param_dtype, rngs=rngs)
        self.dropout = nnx.Dropout(c.dropout, rngs=rngs) if c.dropout else None
        self.pre_norm = create_norm("layer", c.features, **common, rngs=rngs) if c.pre_norm else None
        rates = drop_path_rates(c.drop_path, c.depth)
        self.blocks = Stack(
            [
                Block(
                    mixer, self._channel(c, common, rngs), features=c.features, layer_scale=c.layer_scale, drop_path=rate, **common, rngs=rngs
                )
                for mixer, rate in zip(mixers, rates, strict=True)
            ],
            remat=c.remat,
            scan=c.scan,
        )
        self.norm = create_norm("layer", c.features, **common, rngs=rngs)
        self.attention_pool = AttentionPool(c.features, c.num_heads, c.mlp_ratio, **common, rngs=rngs) if c.pool == "attention" else None
        self.head = make_head(c.features, c.num_classes, c, rngs)
        self.distilled_head = make_head(c.features, c.num_classes, c, rngs) if c.distilled else None
        self.config, self.num_features, self.pool = config, c.features, c.pool
        self.prefix = prefix + c.registers

    @staticmethod
    def _channel(c: IsotropicConfig, common: dict[str, Any], rngs: nnx.Rngs) -> nnx.Module:
        hidden = int(c.features * c.mlp_ratio)
        if c.mlp == "swiglu":
            return GatedMLP(c.features, hidden, use_bias=True, dropout=c.dropout, **common, rngs=rngs)
        return MLP(c.features, hidden, activation=gelu, dropout=c.dropout, **common, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        if self.distilled_head is None or self.head is None:
            return super().__call__(images)
        x, _ = self._run(images)
        x = self.norm(x)
        return (self.head(x[:, 0]) + self.distilled_head(x[:, 1])) / 2

    def features(self, images: jax.Array, indices: Sequence[int] | None = None, *, prefix: bool = False) -> list[Any]:
        """Outputs of some blocks as maps.

        Args:
          images: (batch, height, width, channels).
          indices: of the blocks; default the last of each quarter of the depth.
          prefix: also return the prefix tokens.

        Returns:
          For each index a map (batch, rows, columns, features), or (map, prefix tokens (batch, count, features)).
        """
        depth = len(self.blocks)
        indices = [depth * (i + 1) // 4 - 1 for i in range(4)] if indices is None else indices
        _, found = self._run(images, capture=indices)
        rows, columns = (size // self.config.patch_size for size in images.shape[1:3])
        maps = [x[:, self.prefix :].reshape(x.shape[0], rows, columns, -1) for x in found]
        return [(m, x[:, : self.prefix]) for m, x in zip(maps, found, strict=True)] if prefix else maps

    def pooled(self, images: jax.Array) -> jax.Array:
        x, _ = self._run(images)
        x = x if self.config.norm_after_pool else self.norm(x)
        if self.attention_pool is not None:
            x = self.attention_pool(x)
        else:
            x = x[:, 0] if self.pool == "token" else x[:, self.prefix :].mean(1)
        return self.norm(x) if self.config.norm_after_pool else x

    def reset_head(self, num_classes: int, *, rngs: nnx.Rngs | None = None) -> None:
        super().reset_head(num_classes, rngs=rngs)
        if self.distilled_head is not None:
            self.distilled_head = make_head(self.num_features, num_classes, self.config, nnx.Rngs(1) if rngs is None else rngs)

    def embed(self, images: jax.Array) -> jax.Array:
        """Tokens that enter the first block: (batch, prefix + patches, features)."""
        grid = self.patch_embed(images)
        batch, rows, columns, features = grid.shape
        grid = grid + self.position((rows, columns)).astype(grid.dtype)
        parts = [grid.reshape(batch, rows * columns, features)]

        def spread(tokens: jax.Array) -> jax.Array:
            return jnp.broadcast_to(tokens.astype(grid.dtype), (batch, *tokens.shape))

        if self.register_tokens is not None:
            parts.insert(0, spread(self.register_tokens[...]))
        if self.class_token is not None:
            tokens = self.class_token[...]
            parts.insert(0, spread(tokens if self.prefix_position is None else tokens + self.prefix_position[...]))
        x = jnp.concatenate(parts, 1) if len(parts) > 1 else parts[0]
        x = x if self.dropout is None else self.dropout(x)
        return x if self.pre_norm is None else self.pre_norm(x)

    def _run(self, images: jax.Array, capture: Sequence[int] = ()) -> tuple[jax.Array, list[jax.Array]]:
        """Tokens (batch, prefix + patches, features) after the last block, and those after the blocks in ``capture``."""
        x = self.embed(images)
        if not self.grid:
            return self.blocks(x, capture=capture)
        rows, columns = (size // self.config.patch_size for size in images.shape[1:3])
        tokens = x.shape
        x, found = self.blocks(x.reshape(tokens[0], rows, columns, tokens[2]), capture=capture)
        return x.reshape(tokens), [f.reshape(tokens) for f in found]

    def _depths(self, names: list[str]) -> list[int]:
        stem = ("patch_embed", "position", "class_token", "register_tokens", "prefix_position", "pre_norm")

        def depth(name: str) -> int:
            parts = name.split(".")
            return int(parts[1]) + 1 if parts[0] == "blocks" else 0 if parts[0] in stem else len(self.blocks) + 1

        return [depth(name) for name in names]
