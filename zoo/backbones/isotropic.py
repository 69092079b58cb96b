"""The isotropic image backbone: patches become tokens, and every block sees the same number of them.

    image -> patches -> + positions, prefix tokens -> blocks -> norm -> pool -> head

ViT, DeiT and all whose blocks keep one resolution are this class with other hyper-parameters.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.block import Block
from layers.broadcast import broadcast
from layers.combinators import bidirectional, on_grid
from layers.initializers import normal, truncated_normal
from layers.linear import Linear
from layers.mixer import MixerSpec
from layers.mlp import MLP, GatedMLP, gelu, gelu_tanh
from layers.norm import LayerNorm, create_norm
from layers.patch import PatchEmbed
from layers.position import LearnedPositions
from layers.stack import Stack, drop_path_rates
from pallas_kernels.exponential import gated, silu
from zoo.backbones.classifier import Classifier, check_images, make_head
from zoo.backbones.pooling import AttentionPool
from zoo.registry import ModelConfig


def quick_gelu(x: jax.Array) -> jax.Array:
    """``x sigmoid(1.702 x)``, the approximation of GELU that CLIP was trained with."""
    return gated(x, 1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"gelu": gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu, "swiglu": silu}


@dataclasses.dataclass(frozen=True)
class IsotropicConfig(ModelConfig):
    """Hyper-parameters of an isotropic image model.

    Attributes:
      image_size: pixels of the square image that the position table is made for; others are resampled to.
      features, depth, num_heads, mlp_ratio: width of a token, blocks, attention heads, hidden width of the MLP / features.
      mlp: the activation "gelu", "gelu_tanh" or "quick_gelu", or "swiglu", gated: ``mlp_ratio * features`` is then the
        hidden width of each of the two halves.
      class_token, registers: prefix tokens, placed before the patches.
      distilled: a second class token and head, averaged with the first (DeiT).
      prefix_positions: which prefix tokens have positions of their own: "all", "class" (DINOv2 with registers) or "none".
      mask_token: a token that replaces masked patches (``embed(images, masked)``), as self-supervised training has it.
      distilled_head: whether the second class token has its head; without, it only takes part in attention.
      pool: "token" (the class token), "average" (patches), "token_and_average" (both, side by side), or "attention" (a learned query).
      pooler: a linear layer and tanh after the pooling, as heads have at pre-training (section 3.1 of ViT).
      head_bias: whether the head has one (CLIP's projection has none).
      norm_after_pool: the final norm follows the pooling instead of preceding it.
      final_norm: whether there is one.
      pre_norm: a norm before the first block (CLIP).
      norm_epsilon: added to the variance in every norm.
      qk_norm, qkv_bias, layer_scale: as in the blocks.
      antialias: how position tables are resampled to other grids; False is what PyTorch does without antialiasing, as the authors
        of DINOv2 without registers and all of transformers' models but DINOv2 with registers have it.
    """

    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    features: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    mlp: Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"] = "gelu"
    class_token: bool = True
    registers: int = 0
    distilled: bool = False
    distilled_head: bool = True
    prefix_positions: Literal["all", "class", "none"] = "all"
    mask_token: bool = False
    pool: Literal["token", "average", "token_and_average", "attention"] = "token"
    pooler: bool = False
    head_bias: bool = True
    norm_after_pool: bool = False
    final_norm: bool = True
    pre_norm: bool = False
    norm_epsilon: float = 1e-6
    qk_norm: bool = False
    qkv_bias: bool = True
    layer_scale: float | None = None
    antialias: bool = True


class Isotropic(Classifier):
    """An isotropic image model.

    Names: ``patch_embed``, ``position``, ``class_token``, ``distillation_token``, ``register_tokens``, ``prefix_position``,
    ``blocks.N``, ``norm`` or ``pool_norm``, ``attention_pool``, ``pooler``, ``head``, ``distilled_head``.
    """

    heads = ("head", "distilled_head")
    extras = before_head = ("pooler",)
    neutral = ("prefix_position", "mask_token")

    stem = ("patch_embed", "position", "class_token", "distillation_token", "register_tokens", "mask_token", "prefix_position", "pre_norm")

    def __init__(self, config: IsotropicConfig, *, rngs: nnx.Rngs):
        """Builds the model.

        A mixer that takes grids only gets the grid alone: no prefix tokens, and average pooling (``adapted`` says so).

        Raises:
          ValueError: a patch size that does not divide the image size, or pooling by a token that is not there.
        """
        c = config
        if c.image_size % c.patch_size:
            raise ValueError(f"image_size {c.image_size} must be divisible by the patch size {c.patch_size}")
        if c.pool.startswith("token") and not c.class_token:
            raise ValueError(f'pool="{c.pool}" needs class_token=True')
        norm = functools.partial(LayerNorm, epsilon=c.norm_epsilon)
        own = {"name": "attention", "use_bias": c.qkv_bias, "out_bias": True, "qk_norm": norm if c.qk_norm else None}
        specs: Sequence[MixerSpec] = c.pattern or (c.mixer if c.mixer is not None else own,)
        common = {"dtype": c.dtype, "param_dtype": c.param_dtype}
        hints = {"num_heads": c.num_heads, "dropout": c.dropout, **common}
        self.patch_embed = PatchEmbed(c.patch_size, c.in_channels, c.features, use_bias=not c.pre_norm, **common, rngs=rngs)
        mixers = [bidirectional(specs[i % len(specs)], c.features, hints=hints, rngs=rngs) for i in range(c.depth)]
        self.grid = any("sequence" not in mixer.layouts for mixer in mixers)
        if self.grid:
            mixers = [on_grid(mixer, c.features, rngs=rngs) for mixer in mixers]
            self.adapted = "the mixer takes the grid alone: no prefix tokens, average pooling"
            c = dataclasses.replace(c, class_token=False, distilled=False, registers=0, pool="average" if c.pool.startswith("token") else c.pool)

        def token(count: int, std: float = 1e-6) -> nnx.Param:
            return nnx.Param(normal(std)(rngs.params(), (count, c.features), c.param_dtype))

        self.class_token = token(1) if c.class_token else None
        self.distillation_token = token(1, 0.02) if c.class_token and c.distilled else None
        self.register_tokens = token(c.registers) if c.registers else None
        self.mask_token = token(1, 0.02) if c.mask_token else None
        classes = c.class_token * (1 + c.distilled)
        self.prefix = classes + c.registers
        placed = {"all": self.prefix, "class": classes, "none": 0}[c.prefix_positions]
        self.prefix_position = nnx.Param(truncated_normal(0.02)(rngs.params(), (placed, c.features), c.param_dtype)) if placed else None
        side = c.image_size // c.patch_size
        self.position = LearnedPositions((side, side), c.features, antialias=c.antialias, param_dtype=c.param_dtype, rngs=rngs)
        self.dropout = nnx.Dropout(c.dropout, rngs=rngs) if c.dropout else None
        self.pre_norm = create_norm(norm, c.features, **common, rngs=rngs) if c.pre_norm else None
        rates = drop_path_rates(c.drop_path, c.depth)
        self.blocks = Stack(
            [
                Block(
                    mixer,
                    self._channel(c, common, rngs),
                    features=c.features,
                    norm_epsilon=c.norm_epsilon,
                    layer_scale=c.layer_scale,
                    drop_path=rate,
                    **common,
                    rngs=rngs,
                )
                for mixer, rate in zip(mixers, rates, strict=True)
            ],
            remat=c.remat,
            scan=c.scan,
        )
        self.norm = create_norm(norm, c.features, **common, rngs=rngs) if c.final_norm and not c.norm_after_pool else None
        self.pool_norm = create_norm(norm, c.features, **common, rngs=rngs) if c.final_norm and c.norm_after_pool else None
        pooling = {"norm": norm, "activation": ACTIVATIONS[c.mlp], **common}
        self.attention_pool = AttentionPool(c.features, c.num_heads, c.mlp_ratio, **pooling, rngs=rngs) if c.pool == "attention" else None
        self.config, self.num_features, self.pool = config, c.features * (1 + (c.pool == "token_and_average")), c.pool
        self.pooler = Linear(self.num_features, self.num_features, kernel_init=truncated_normal(0.02), **common, rngs=rngs) if c.pooler else None
        self.head = make_head(self.num_features, c.num_classes, c, rngs)
        self.distilled_head = make_head(c.features, c.num_classes, c, rngs) if self.distillation_token is not None and c.distilled_head else None

    @staticmethod
    def _channel(c: IsotropicConfig, common: dict[str, Any], rngs: nnx.Rngs) -> nnx.Module:
        hidden = int(c.features * c.mlp_ratio)
        if c.mlp == "swiglu":
            return GatedMLP(c.features, hidden, use_bias=True, dropout=c.dropout, **common, rngs=rngs)
        return MLP(c.features, hidden, activation=ACTIVATIONS[c.mlp], dropout=c.dropout, **common, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        if self.distilled_head is None or self.head is None:
            return super().__call__(images)
        x, _ = self._run(images)
        x = x if self.norm is None else self.norm(x)
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
        indices = [max(depth * (i + 1) // 4 - 1, 0) for i in range(4)] if indices is None else indices
        _, found = self._run(images, capture=indices)
        rows, columns = (size // self.config.patch_size for size in images.shape[1:3])
        maps = [x[:, self.prefix :].reshape(x.shape[0], rows, columns, -1) for x in found]
        return [(m, x[:, : self.prefix]) for m, x in zip(maps, found, strict=True)] if prefix else maps

    def pooled(self, images: jax.Array) -> jax.Array:
        x, _ = self._run(images)
        x = x if self.norm is None else self.norm(x)
        if self.attention_pool is not None:
            x = self.attention_pool(x[:, self.prefix :])
        else:
            parts = {"token": lambda: x[:, 0], "average": lambda: x[:, self.prefix :].mean(1)}
            x = jnp.concatenate([parts[part]() for part in self.pool.split("_and_")], axis=-1)
        x = x if self.pool_norm is None else self.pool_norm(x)
        return x if self.pooler is None else jnp.tanh(self.pooler(x))

    def reset_head(self, num_classes: int, *, rngs: nnx.Rngs | None = None) -> None:
        super().reset_head(num_classes, rngs=rngs)
        if self.distilled_head is not None:
            self.distilled_head = nnx.data(make_head(self.num_features, num_classes, self.config, nnx.Rngs(1) if rngs is None else rngs))

    def embed(self, images: jax.Array, masked: jax.Array | None = None) -> jax.Array:
        """Tokens that enter the first block: (batch, prefix + patches, features).

        Args:
          images: (batch, height, width, channels).
          masked: (batch, rows, columns) bool, patches that the mask token replaces.
        """
        check_images(images, self.config.in_channels)
        grid = self.patch_embed(images)
        batch, rows, columns, features = grid.shape
        if masked is not None:
            if self.mask_token is None:
                raise ValueError("masked= needs a model with mask_token=True")
            grid = jnp.where(masked[..., None], broadcast(self.mask_token[...], grid.shape, grid.dtype), grid)
        grid = grid + broadcast(self.position((rows, columns)), grid.shape, grid.dtype)
        parts = [grid.reshape(batch, rows * columns, features)]
        prefix = [token[...] for token in (self.class_token, self.distillation_token, self.register_tokens) if token is not None]
        if prefix:
            tokens = jnp.concatenate(prefix)
            if self.prefix_position is not None:
                placed = self.prefix_position[...]
                tokens = tokens.at[: len(placed)].add(placed)
            parts.insert(0, broadcast(tokens, (batch, *tokens.shape), grid.dtype))
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
