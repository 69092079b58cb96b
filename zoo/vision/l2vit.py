"""L2ViT: The Linear Attention Resurrection in Vision Transformer (Zheng, 2025, arXiv:2501.16182).

    image -> two 3x3 convolutions of stride 2, LN -> stage 1 -> LN, 2x2 convolution of stride 2 -> stage 2 -> ... ->
    stage 4 -> LN -> average pool -> head

    even blocks: x = x + depthwise3x3(x);  x = x + attention in 7x7 windows(LN(x))
                 x = x + depthwise3x3(x);  x = x + MLP(LN(x))
    odd blocks:  x = x + depthwise3x3(x);  x = x + ReLULinear(LN(x))
                 x = x + depthwise7x7(BN(GELU(depthwise7x7(LN(x)))));  x = x + MLP(LN(x))

Linear attention (:mod:`layers.attention.relu_linear`) is spread over the whole map; the two convolutions after it
concentrate it locally. Windows have no position bias, and the zeros that pad them are attended to. Published for
ImageNet-1k at 224: tiny 28.6 M parameters, 83.1 % top-1; small 50.2 M, 84.1 %; base 88.6 M, 84.4 %, pretrained on
ImageNet-22k 86.0 %, at 384 87.0 %.

The authors pad images whose sides are not multiples of 4 with zeros; here the convolutions of the stem do.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.block import Branch
from layers.depthwise import DepthwiseConv
from layers.initializers import truncated_normal
from layers.mixer import MixerSpec, Place
from layers.mlp import MLP, gelu
from layers.module import Module
from layers.norm import BatchNorm, create_norm
from layers.patch import ConvNorm
from layers.sequential import Sequential
from zoo.backbones.pyramid import Pyramid, PyramidConfig
from zoo.naming import Naming, Rearrange, Split
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class L2ViTConfig(PyramidConfig):
    """Hyper-parameters of L2ViT.

    Attributes:
      window: tokens along each side of a window of the even blocks.
      concentration: kernel size of the convolutions that follow linear attention.
      mlp_ratio: hidden width of the MLP / features.
    """

    features: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    concentration: int = 7
    mlp_ratio: float = 4.0


class LocalConcentration(Module):
    """Two depth-wise convolutions, with GELU and a batch norm between; section 3.3 of the paper."""

    def __init__(
        self, features: int, kernel_size: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
    ):
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.first = DepthwiseConv(features, kernel_size, kernel_init=truncated_normal(0.02), **common)
        self.norm = BatchNorm(features, **common)
        self.second = DepthwiseConv(features, kernel_size, kernel_init=truncated_normal(0.02), **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, features) to the same shape."""
        return self.second(self.norm(gelu(self.first(x))))


class L2ViT(Pyramid):
    """L2ViT; names as in :class:`Pyramid`, with ``position``, ``position_1`` and ``local`` in blocks."""

    config: L2ViTConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        if self._is_local(place):
            return {"name": "windowed", "window": self.config.window, "padding": "zeros", "inner": "attention"}
        return "relu_linear"

    def make_stem(self, *, rngs: nnx.Rngs) -> Sequential:
        c, width = self.config, self.config.features[0]
        options: dict[str, Any] = {"strides": 2, "kernel_init": truncated_normal(0.02), **self._common(rngs)}
        first = ConvNorm(c.in_channels, width // 2, activation=jax.nn.relu, **options)
        return Sequential([first, ConvNorm(width // 2, width, **options), self._norm(width, rngs)])

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> nnx.Module:
        source, features = self.config.features[stage - 1 : stage + 1]
        shape: dict[str, Any] = {"kernel_size": 2, "strides": 2, "padding": "SAME", "norm": "layer", "norm_first": True}
        return ConvNorm(source, features, kernel_init=truncated_normal(0.02), **shape, **self._common(rngs))

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        features = self._width(place)
        return MLP(features, int(features * self.config.mlp_ratio), dropout=place.dropout, **self._common(rngs))

    def make_branches(self, place: Place, *, rngs: nnx.Rngs) -> dict[str, nnx.Module | Branch]:
        features = self._width(place)

        def position() -> Branch:
            init = truncated_normal(0.02)
            conv = DepthwiseConv(features, 3, kernel_init=init, **self._common(rngs))
            return Branch(conv, norm=None, scale=None, drop=None)

        mixer, channel = self.make_mixer(place, rngs=rngs), self.make_channel(place, rngs=rngs)
        if self._is_local(place):
            return {"position": position(), "mixer": mixer, "position_1": position(), "channel": channel}
        local = LocalConcentration(features, self.config.concentration, **self._common(rngs))
        return {"position": position(), "mixer": mixer, "local": local, "channel": channel}

    def block_options(self, place: Place) -> dict[str, Any]:
        return {"norm_epsilon": 1e-5}

    def make_norm(self, *, rngs: nnx.Rngs) -> Any:
        return self._norm(self.config.features[-1], rngs)

    @staticmethod
    def _is_local(place: Place) -> bool:
        return (place.index or 0) % 2 == 0

    def _norm(self, features: int, rngs: nnx.Rngs) -> Any:
        return create_norm("layer", features, epsilon=1e-5, **self._common(rngs))

    def _common(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype, "rngs": rngs}


_BASE: dict[str, Any] = {"features": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32), "drop_path": 0.3}
# Stochastic depth of base is the authors'; that of tiny and small, which they do not state, is our choice.
VARIANTS: dict[str, dict[str, Any]] = {
    "l2vit_tiny": {"depths": (2, 2, 6, 2), "drop_path": 0.1},
    "l2vit_small": {"drop_path": 0.2},
    "l2vit_base": _BASE,
    "l2vit_base_384": {**_BASE, "image_size": 384, "window": 12},
    # Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels, in windows of 4x4.
    "l2vit_nano": {
        "image_size": 32,
        "features": (48, 96),
        "depths": (2, 2),
        "num_heads": (3, 6),
        "window": 4,
        "concentration": 5,
        "mlp_ratio": 2.0,
        "drop_path": 0.1,
    },
}

# Of the authors' code.
PARAMETERS = {
    "l2vit_tiny": 28_596_781,
    "l2vit_small": 50_199_157,
    "l2vit_base": 88_577_188,
    "l2vit_base_384": 88_577_188,
}

_BLOCK, _OURS = "stages.{s}.{b}", "stages.{s}.blocks.{b}"
_PARTS = ("query", "key", "value")
RULES = {
    "l2vit": Naming(
        [
            *(
                (f"downsample_layers.0.proj.proj.{3 * i + j}", f"stages.0.downsample.{i}.{part}")
                for i in range(2)
                for j, part in enumerate(("conv", "norm"))
            ),
            ("downsample_layers.0.norm", "stages.0.downsample.2"),
            ("downsample_layers.{s}.proj", "stages.{s}.downsample.conv"),
            ("downsample_layers.{s}.norm", "stages.{s}.downsample.norm"),
            (f"{_BLOCK}.cpe.0.proj", f"{_OURS}.position"),
            (f"{_BLOCK}.cpe.1.proj", f"{_OURS}.position_1"),
            (f"{_BLOCK}.norm1", f"{_OURS}.mixer_norm"),
            *(
                rule
                for mixer in (f"{_OURS}.mixer", f"{_OURS}.mixer.inner.inner")
                for rule in (
                    (f"{_BLOCK}.attn.qkv", tuple(f"{mixer}.{part}" for part in _PARTS), Split()),
                    (f"{_BLOCK}.attn.proj", f"{mixer}.out"),
                )
            ),
            (f"{_BLOCK}.attn.temperature", f"{_OURS}.mixer.temperature", Rearrange("h 1 1 -> h")),
            (f"{_BLOCK}.norm3", f"{_OURS}.local_norm"),
            (f"{_BLOCK}.local_mp.conv1", f"{_OURS}.local.first"),
            (f"{_BLOCK}.local_mp.bn", f"{_OURS}.local.norm"),
            (f"{_BLOCK}.local_mp.conv2", f"{_OURS}.local.second"),
            (f"{_BLOCK}.norm2", f"{_OURS}.channel_norm"),
            (f"{_BLOCK}.mlp.fc1", f"{_OURS}.channel.up"),
            (f"{_BLOCK}.mlp.fc2", f"{_OURS}.channel.down"),
            ("norm", "norm"),
            ("head", "head"),
        ]
    )
}

register_family(
    "l2vit",
    L2ViT,
    L2ViTConfig,
    VARIANTS,
    our_choice=("l2vit_nano",),
    parameters=PARAMETERS,
    rules=RULES,
    paper=(227,),
)
