"""FAN: Understanding the Robustness in Vision Transformers (Zhou et al., ICML 2022, arXiv:2204.12451).

    image -> convolutions of stride 2, or two stages of ConvNeXt -> + sines and cosines -> blocks
          -> class token: blocks of class attention -> norm -> class token -> linear

    block: x = x + s1 attention(LN(x));  x = x + s2 channels(LN(x))

``channels`` is :class:`layers.channel_processing.ChannelProcessing`, which groups channels as attention groups tokens.
Published for ImageNet-1k at 224, accuracy on it and on ImageNet-C: vit tiny 79.2 % and 57.5 %, small 82.5 and 64.5,
base 83.6 and 67.0, large 83.9 and 67.7; hybrid tiny 80.1 and 57.4, small 83.5 and 64.7, base 83.9 and 66.4, large 84.3
and 68.3.

"tap" models: Robustifying Token Attention for Vision Transformers (Guo et al., ICCV 2023, arXiv:2303.11126). Attention
reads tokens that are averaged with their neighbors (:mod:`layers.token_aware_pooling`), and a loss makes different
tokens attend to different ones (:mod:`layers.attention.diverse`). Base hybrid, the one released, has 84.3 % top-1 and a
mean corruption error of 43.7. ``fan_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype

from layers.block import Branch
from layers.channel_processing import ChannelProcessing
from layers.class_attention import ClassBlock
from layers.combinators import bidirectional
from layers.drop import LayerScale
from layers.linear import Linear
from layers.mixer import Mixer, MixerSpec, Place
from layers.module import Module
from layers.norm import create_norm
from layers.patch import ConvStem, PatchEmbed
from layers.sequential import Sequential
from layers.tokens import Tokens
from zoo.backbones.isotropic import ACTIVATIONS, Isotropic, IsotropicConfig
from zoo.naming import Naming, Rearrange, Split
from zoo.registry import register_family
from zoo.vision.convnext import RULES as CONVNEXT_RULES
from zoo.vision.convnext import ConvNeXt, ConvNeXtConfig

# ``features`` divided by the width of each convolution that makes patches, by patch size.
_STEMS = {16: (8, 4, 2, 1), 8: (4, 2, 1), 4: (4, 1)}


@dataclasses.dataclass(frozen=True)
class FANConfig(IsotropicConfig):
    """Hyper-parameters of FAN; ``drop_path`` is the same for all blocks.

    Attributes:
      hybrid: blocks of the two stages of ConvNeXt that make patches; None for convolutions of stride 2.
      hybrid_features: of these stages.
      fourier_features: number of sines and cosines of a row, and of a column.
      token_pooling: number of neighborhood sizes that a token chooses from (TAP); 0 for no pooling.
      attention_diversity: whether attention has the attention diversification loss (ADL).
    """

    class_position: Any = "after"
    layer_scale: float | None = 1.0
    hybrid: tuple[int, ...] | None = None
    hybrid_features: tuple[int, ...] = (128, 256)
    fourier_features: int = 32
    token_pooling: int = 0
    attention_diversity: bool = False


class PatchStem(ConvStem):
    """Convolutions of stride 2 that make patches."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patches of an image."""
        patch = 2 ** len(self)
        return -(-height // patch), -(-width // patch)


class UnbiasedLayerNorm(nnx.LayerNorm):
    """LayerNorm that divides by the unbiased variance, the sum of squares over features - 1."""

    def __init__(self, features: int, *, epsilon: float, **options: Any):
        # Equal to the usual norm with this epsilon and a smaller scale.
        left = 1 - 1 / features
        super().__init__(
            features, epsilon=epsilon * left, use_fast_variance=False, promote_dtype=_scaled(math.sqrt(left)), **options
        )


@functools.cache
def _scaled(factor: float) -> Any:
    """The function that nnx calls with input, scale and bias of a norm, here with the scale times ``factor``; cached,
    so that equal norms have the same one."""

    def promoted(arrays: Any, *, dtype: Any = None, inexact: bool = True) -> Any:
        x, scale, bias = promote_dtype(arrays, dtype=dtype, inexact=inexact)
        return x, scale * factor, bias

    return promoted


class Trunk(ConvNeXt):
    """A ConvNeXt whose norms after the stem's are those of the authors' code, an old version of timm: on maps in
    channels-last memory, as all are after the first norm, it uses the unbiased variance
    (findings/timm_054_layer_norm_by_memory_layout.sh).
    """

    def make_stem(self, *, rngs: nnx.Rngs) -> Sequential:
        c, common = self.config, self._common(rngs)
        patches = PatchEmbed(4, c.in_channels, c.features[0], **common)
        return Sequential([patches, create_norm("layer", c.features[0], epsilon=1e-6, **common)])

    def _norm(self, features: int, rngs: nnx.Rngs) -> Any:
        return UnbiasedLayerNorm(features, epsilon=1e-6, **self._common(rngs))


class HybridStem(Module):
    """The stages of a ConvNeXt, then patches of 2x2. Parts: ``trunk.N``, ``patches``."""

    def __init__(self, config: FANConfig, *, rngs: nnx.Rngs):
        widths, depths = config.hybrid_features, config.hybrid or ()
        common: dict[str, Any] = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        size: dict[str, Any] = {"features": widths, "depths": depths, "num_heads": (1,) * len(widths)}
        made = ConvNeXtConfig(in_channels=config.in_channels, num_classes=0, **size, **common)
        self.trunk = Trunk(made, rngs=rngs).stages
        self.patches = PatchEmbed(2, widths[-1], config.features, **common, rngs=rngs)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patches of an image.

        Raises:
          ValueError: patches do not divide its map.
        """
        smaller = 4 * 2 ** (len(self.trunk) - 1)
        return self.patches.grid(height // smaller, width // smaller)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, rows, columns, features)."""
        for stage in self.trunk:
            x = stage(x)
        return self.patches(x)


class FourierPositions(Module):
    """A linear map of sines and cosines of a token's row and column, each divided by their number (DETR, Carion et al.,
    2020). Parameters: ``linear``.
    """

    def __init__(self, features: int, count: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        self.linear = Linear(2 * count, features, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.count = count

    def __call__(self, grid: tuple[int, int]) -> jax.Array:
        """For a grid: (rows, columns, features)."""
        rates = 10000.0 ** (-jnp.arange(0, self.count, 2, dtype=jnp.float32) / self.count)

        def waves(size: int) -> jax.Array:
            angles = 2 * math.pi * jnp.arange(1, size + 1)[:, None] / (size + 1e-6) * rates
            return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(size, self.count)

        rows, columns = (waves(size) for size in grid)
        both = jnp.broadcast_to(rows[:, None], (*grid, self.count)), jnp.broadcast_to(columns, (*grid, self.count))
        return self.linear(jnp.concatenate(both, -1))


class CarryingClassBlock(ClassBlock):
    """A block of class attention that also changes the patches, which the next block reads: 2 norm(x + s norm(x)).

    It is that of XCiT (El-Nouby et al., 2021, arXiv:2106.09681) with the norm of all tokens:

        u = norm([c, x]);  c = c + s attention(u_c; u);  x = x + s u_x
        [c, x] = norm([c, x]);  c = c + s mlp(c);  x = 2 x
    """

    def __call__(self, classes: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        count = classes.shape[1]
        seen = self.mixer_norm(jnp.concatenate([classes, x], 1))
        classes = classes + self._scaled(self.mixer_scale, self.mixer(seen[:, :count], Tokens(context=seen)))
        x = x + self._scaled(self.mixer_scale, seen[:, count:])
        classes, x = self.channel_norm(classes), self.channel_norm(x)
        return classes + self._scaled(self.channel_scale, self.channel(classes)), 2 * x

    @staticmethod
    def _scaled(scale: LayerScale | None, y: jax.Array) -> jax.Array:
        return y if scale is None else scale(y)


class FAN(Isotropic):
    """FAN; names as in :class:`Isotropic`."""

    config: FANConfig

    def make_stem(self, *, rngs: nnx.Rngs) -> Any:
        c = self.config
        if c.hybrid is not None:
            return HybridStem(c, rngs=rngs)
        if c.patch_size not in _STEMS:
            raise ValueError(f"patches are of 4, 8 or 16 pixels, got patch_size={c.patch_size}")
        widths = tuple(c.features // part for part in _STEMS[c.patch_size])
        common: dict[str, Any] = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        return PatchStem(c.in_channels, widths, use_bias=False, **common)

    def make_position(self, grid: tuple[int, int], *, rngs: nnx.Rngs) -> Any:
        c = self.config
        if c.position != "learned":
            return super().make_position(grid, rngs=rngs)
        common: dict[str, Any] = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        return FourierPositions(c.features, c.fourier_features, **common)

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        return {"name": "diverse_attention" if c.attention_diversity else "attention", "use_bias": c.qkv_bias}

    def make_mixer(self, place: Place, *, rngs: nnx.Rngs) -> Mixer:
        """The user's mixer or the architecture's own, on pooled tokens if the configuration says so."""
        c, spec = self.config, self.mixer_spec(place)
        if c.token_pooling:
            norm = {"norm": self._norm_of(), "norm_epsilon": c.norm_epsilon}
            spec = {"name": "token_aware_pooling", "scales": c.token_pooling, **norm, "inner": spec}
        return bidirectional(spec, c.features, place=place, rngs=rngs)

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        hidden = int(c.features * c.mlp_ratio)
        options: dict[str, Any] = {"num_heads": c.num_heads, "use_bias": c.qkv_bias, "dropout": c.dropout}
        return ChannelProcessing(c.features, hidden, **options, **place.dtypes, rngs=rngs)

    def make_branches(self, place: Place, *, rngs: nnx.Rngs) -> dict[str, nnx.Module | Branch]:
        branches = super().make_branches(place, rngs=rngs)
        if self.config.token_pooling:
            branches["mixer"] = Branch(branches["mixer"], norm=None)  # type: ignore[arg-type]
        return branches

    def make_class_block(self, *, rngs: nnx.Rngs) -> ClassBlock:
        c = self.config
        options: dict[str, Any] = {"num_heads": c.num_heads, "mlp_ratio": c.mlp_ratio, "use_bias": c.qkv_bias}
        options |= {"norm": c.norm, "norm_epsilon": c.norm_epsilon, "layer_scale": c.layer_scale}
        options |= {"activation": ACTIVATIONS[c.mlp], "dtype": c.dtype, "param_dtype": c.param_dtype}
        return CarryingClassBlock(c.features, **options, rngs=rngs)

    def place(self, stage: int, index: int) -> Place:
        return dataclasses.replace(super().place(stage, index), drop_path=self.config.drop_path or None)


_TINY: dict[str, Any] = {"features": 192, "num_heads": 4}
_SMALL: dict[str, Any] = {"features": 384, "num_heads": 8}
_BASE: dict[str, Any] = {"features": 448, "num_heads": 8}
_LARGE: dict[str, Any] = {"features": 480, "num_heads": 10}
_SIZES: dict[str, dict[str, Any]] = {
    "fan_tiny_12_p16_224": _TINY,
    "fan_small_12_p16_224": _SMALL,
    "fan_base_18_p16_224": {**_BASE, "depth": 18},
    "fan_large_24_p16_224": {**_LARGE, "depth": 24},
    "fan_tiny_8_p4_hybrid": {**_TINY, "num_heads": 8, "depth": 8, "hybrid": (3, 3)},
    # The authors' names: "12" has 10 blocks here, and the "16" of the large one 22.
    "fan_small_12_p4_hybrid": {**_SMALL, "depth": 10, "hybrid": (3, 3)},
    "fan_base_16_p4_hybrid": {**_BASE, "depth": 16, "hybrid": (3, 3)},
    "fan_large_16_p4_hybrid": {**_LARGE, "depth": 22, "hybrid": (3, 5)},
}
_TAP: dict[str, Any] = {"token_pooling": 4, "attention_diversity": True}
VARIANTS: dict[str, dict[str, Any]] = {
    # 8x8 tokens from 32x32 pixels.
    "fan_nano": {
        "image_size": 32,
        "patch_size": 4,
        "features": 64,
        "depth": 4,
        "num_heads": 4,
        "mlp_ratio": 2.0,
        "class_blocks": 1,
        **_TAP,
    },
    **_SIZES,
    **{f"tap_{name}": {**size, **_TAP} for name, size in _SIZES.items()},
}

# Of the authors' code; that of the second paper has parameters of its pooling in every model.
PARAMETERS = {
    "fan_tiny_12_p16_224": 7_319_920,
    "fan_small_12_p16_224": 28_345_336,
    "fan_base_18_p16_224": 54_350_320,
    "fan_large_24_p16_224": 80_574_100,
    "fan_tiny_8_p4_hybrid": 7_467_240,
    "fan_small_12_p4_hybrid": 26_117_944,
    "fan_base_16_p4_hybrid": 50_475_048,
    "fan_large_16_p4_hybrid": 76_855_140,
    "tap_fan_tiny_12_p16_224": 7_404_688,
    "tap_fan_small_12_p16_224": 28_513_048,
    "tap_fan_base_18_p16_224": 54_643_360,
    "tap_fan_large_24_p16_224": 80_992_468,
    "tap_fan_tiny_8_p4_hybrid": 7_523_752,
    "tap_fan_small_12_p4_hybrid": 26_257_704,
    "tap_fan_base_16_p4_hybrid": 50_735_528,
    "tap_fan_large_16_p4_hybrid": 77_238_644,
}


def _hybrid(prefix: str) -> list[tuple[Any, ...]]:
    """Rules of a ConvNeXt inside."""
    small = Rearrange("o i 1 1 -> i o")
    rules: list[tuple[Any, ...]] = []
    for theirs, ours, *operations in CONVNEXT_RULES["timm"].rules:
        if not isinstance(ours, str) or not ours.startswith("stages."):
            continue
        theirs, ours = f"{prefix}.{theirs}", ours.replace("stages.", "patch_embed.trunk.")
        if "mlp.fc" in theirs:  # 1x1 convolutions
            rules.append((f"{theirs}.weight", f"{ours}.kernel", small))
        rules.append((theirs, ours, *operations))
    return rules


def _rules(pooled: bool) -> dict[str, Naming]:
    block, ours = "blocks.{i}", "blocks.{i}"
    mixer = f"{ours}.mixer.inner.inner" if pooled else f"{ours}.mixer.inner"
    theirs, class_block = "cls_attn_blocks.{i}", "class_blocks.{i}"
    of_pooling = [
        (f"{block}.dilation_predictor.proj.{i}", f"{ours}.mixer.{part}")
        for i, part in enumerate(("first", "batch_norm", "second"))
        if pooled
    ]
    return {
        "fan": Naming(
            [
                ("patch_embed.proj", "patch_embed.patches"),
                *_hybrid("patch_embed.backbone"),
                *(
                    (f"patch_embed.proj.{2 * i}.{j}", f"patch_embed.{i}.{part}")
                    for i in range(4)
                    for j, part in enumerate(("conv", "norm"))
                ),
                ("pos_embed.token_projection.weight", "position.linear.kernel", Rearrange("o i 1 1 -> i o")),
                ("pos_embed.token_projection", "position.linear"),
                ("cls_token", "class_token", Rearrange("1 n d -> n d")),
                *of_pooling,
                (f"{block}.norm1", f"{ours}.mixer.norm" if pooled else f"{ours}.mixer_norm"),
                (f"{block}.attn.q", f"{mixer}.query"),
                (f"{block}.attn.kv", (f"{mixer}.key", f"{mixer}.value"), Split()),
                (f"{block}.attn.proj", f"{mixer}.out"),
                (f"{block}.gamma1", f"{ours}.mixer_scale.scale"),
                (f"{block}.norm2", f"{ours}.channel_norm"),
                (f"{block}.mlp.temperature", f"{ours}.channel.temperature", Rearrange("h 1 1 -> h")),
                (f"{block}.mlp.q", f"{ours}.channel.query"),
                (f"{block}.mlp.norm_v", f"{ours}.channel.norm"),
                (f"{block}.mlp.mlp_v.fc1", f"{ours}.channel.up"),
                (f"{block}.mlp.mlp_v.fc2", f"{ours}.channel.down"),
                (f"{block}.mlp.mlp_v.gamma", f"{ours}.channel.inside.scale"),
                (f"{block}.mlp.mlp_v.dwconv.conv1", f"{ours}.channel.first"),
                (f"{block}.mlp.mlp_v.dwconv.bn", f"{ours}.channel.batch_norm"),
                (f"{block}.mlp.mlp_v.dwconv.conv2", f"{ours}.channel.second"),
                (f"{block}.gamma2", f"{ours}.channel_scale.scale"),
                (f"{theirs}.norm1", f"{class_block}.mixer_norm"),
                *((f"{theirs}.attn.{part[0]}", f"{class_block}.mixer.{part}") for part in ("query", "key", "value")),
                (f"{theirs}.attn.proj", f"{class_block}.mixer.out"),
                (f"{theirs}.gamma1", f"{class_block}.mixer_scale.scale"),
                (f"{theirs}.norm2", f"{class_block}.channel_norm"),
                (f"{theirs}.mlp.fc1", f"{class_block}.channel.up"),
                (f"{theirs}.mlp.fc2", f"{class_block}.channel.down"),
                (f"{theirs}.gamma2", f"{class_block}.channel_scale.scale"),
                ("norm", "norm"),
                ("head", "head"),
            ]
        )
    }


for _pooled in (False, True):
    register_family(
        "fan",
        FAN,
        FANConfig,
        {name: size for name, size in VARIANTS.items() if bool(size.get("token_pooling")) == _pooled},
        our_choice=("fan_nano",),
        parameters=PARAMETERS,
        rules=_rules(_pooled),
        paper=(29,),
    )
