"""OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels (Lou and Yu, CVPR 2025,
arXiv:2502.20087).

    image -> base net: stages 1, 2, 3 -> x                            a convolution of stride 2 before each, first four
             overview net: stage 4 of x, linear -> context c_0        a quarter of its features
             focus net: (x, enlarged c_0) at stage 3's size, then, each shrunk by a convolution, at stage 4's
          -> linear, batch norm, SiLU -> average pool -> head

    block of base and overview: x = x + depthwise3x3(x);  x = a x + MLP(SE(BN(large_kernel(LN(x)))))
    block of the focus net:     c = a c + b c_0;  z = [x, c];  z = z + depthwise3x3(z);  z = a z + context_mixing(LN(z))
                                z = z + depthwise3x3(z);  z = a z + MLP(LN(z))

a and b scale and shift each feature, starting at 1 and 0; the first two stages have no a. MLPs are W2 GRN(h +
depthwise3x3(h)) with h = GELU(W1 x). The first block of the focus net takes c_0 as its context. In training the
overview net has a classifier too: its logits are reported as "overview", and the authors add 0.4 times their loss.

Published for ImageNet-1k at 224: XT 16.4 M parameters, 82.7 % top-1; T 33 M, 84.2 %; S 56 M, 84.8 %; B 95 M, 85.1 %.
These counts are of the form for deployment, "reparam", whose large kernels are merged with their branches, without the
overview's classifier. ``zoo.reparameterize(model, only=layers.LargeKernelConvolution)`` converts the form for training
into it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from layers.block import Block, Branch
from layers.depthwise import DepthwiseConv
from layers.initializers import truncated_normal
from layers.linear import Conv, Linear
from layers.mixer import Mixer, MixerSpec, Place
from layers.mlp import ConvMLP, gelu
from layers.module import AuxLogits, Module
from layers.norm import Affine, BatchNorm
from layers.patch import ConvNorm, ConvStem
from layers.pool import resize_bilinear
from layers.squeeze_excite import SqueezeExcite
from layers.stack import Stack, drop_path_rates
from layers.tokens import Known, Tokens
from primitives.exponential import silu
from zoo.backbones.classifier import Classifier, check_images
from zoo.backbones.pyramid import Pyramid, PyramidConfig
from zoo.registry import register_family
from zoo.vision.convnext import ConvNeXtBranch
from zoo.vision.overlock_releases import CROPS, PARAMETERS, RULES, VARIANTS


@dataclasses.dataclass(frozen=True)
class OverLoCKConfig(PyramidConfig):
    """Hyper-parameters of OverLoCK.

    Attributes:
      features, depths, num_heads: of the base net's stages and, last, of the overview net; the heads are for a user's
        mixer.
      focus_depths, focus_heads: blocks of the focus net's two stages, and half of the groups of their kernels.
      kernel_sizes: of each stage; those of the last two are the focus net's too.
      mlp_ratio, focus_mlp_ratio: hidden width of the MLPs / features, in the focus net / features without the
        context's.
      scaled: whether the blocks of each stage scale and shift x (the a above).
      projection: features of the head's input.
      overview_head: whether the overview net has a classifier.
      merged: whether large kernels have the merged form, for deployment.
    """

    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    focus_depths: tuple[int, ...] = (6, 2)
    focus_heads: tuple[int, ...] = (4, 6)
    kernel_sizes: tuple[int, ...] = (17, 15, 13, 7)
    mlp_ratio: float = 4.0
    focus_mlp_ratio: float = 3.0
    scaled: tuple[bool, ...] = (False, False, True, True)
    projection: int = 1024
    overview_head: bool = True
    merged: bool = False


class RepConv(ConvNeXtBranch):
    """``channel(gate(norm(mixer(x))))``: token mixing and channel mixing in one residual branch."""

    def __init__(self, mixer: Mixer, norm: nnx.Module, gate: nnx.Module, channel: nnx.Module):
        super().__init__(mixer, norm, channel)
        self.gate = gate

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        return self.channel(self.gate(self.norm(self.mixer(x, tokens))))


class FocusBlock(Block):
    """A block on features with their context appended, to which the overview's context is first added. Parameters also:
    ``context_scale``, ``overview_scale``.
    """

    def __init__(self, branches: Mapping[str, Any], *, context: int, first: bool, **options: Any):
        """``context``: number of features of the context; ``first``: whether the context is the overview's already."""
        super().__init__(branches, **options)
        common = {name: options[name] for name in ("dtype", "param_dtype")}
        self.context_scale, self.overview_scale = (None if first else Affine(context, **common) for _ in range(2))

    def __call__(self, x: jax.Array, tokens: Known = None, shared: Any = None, own: Any = None) -> Any:
        """As :class:`Block`; ``shared`` is the overview's context, (batch, height, width, context)."""
        if self.context_scale is not None and self.overview_scale is not None:
            features, context = jnp.split(x, [x.shape[-1] - shared.shape[-1]], axis=-1)
            context = self.context_scale(context) + self.overview_scale(shared)
            x = jnp.concatenate([features, context.astype(x.dtype)], axis=-1)
        return super().__call__(x, tokens), shared


class FocusStage(Module):
    """One resolution of the focus net: ``blocks``, in the second preceded by convolutions of stride 2, ``features`` and
    ``context``.
    """

    def __init__(self, shrink: tuple[nnx.Module, nnx.Module] | None, blocks: Stack, context: int):
        self.features: Any = None if shrink is None else shrink[0]
        self.context: Any = None if shrink is None else shrink[1]
        self.blocks, self.split = blocks, context

    def __call__(self, x: jax.Array, overview: jax.Array) -> jax.Array:
        """Maps features with their context, (batch, height, width, features), to those of this resolution; ``overview``
        is the overview's context at this resolution.
        """
        if self.features is not None:
            features, context = jnp.split(x, [x.shape[-1] - self.split], axis=-1)
            x = jnp.concatenate([self.features(features), self.context(context)], axis=-1)
        return self.blocks(x, shared=overview)[0]


class OverviewHead(Module):
    """The overview's classifier: ``head(mean(norm(x)))``."""

    def __init__(self, features: int, num_classes: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = BatchNorm(features, **common)
        self.head = Linear(features, num_classes, kernel_init=truncated_normal(0.02), **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, features) to logits (batch, classes)."""
        return self.head(jnp.mean(self.norm(x), axis=(1, 2)))


class OverLoCK(Pyramid):
    """OverLoCK. Names: as in :class:`Pyramid`, whose last stage is the overview net, with ``context``, ``focus.S``,
    named like stages, and ``overview_head``.

    A user's mixer replaces large kernels and context mixing.
    """

    config: OverLoCKConfig
    heads: ClassVar[tuple[str, ...]] = ("head", "overview_head")
    without: ClassVar[Mapping[str, str]] = {
        **Classifier.without,
        "overview_head": "no classifier of the overview: make the model with overview_head=False",
    }

    def __init__(self, config: OverLoCKConfig, *, rngs: nnx.Rngs):
        """Raises ValueError unless there are at least two stages, and two of the focus net."""
        if len(config.depths) < 2 or len(config.focus_depths) != 2:
            raise ValueError(
                "OverLoCK has a base net, an overview net and two stages of the focus net: depths= gives at least two "
                f"numbers, focus_depths= two; got {config.depths} and {config.focus_depths}"
            )
        super().__init__(config, rngs=rngs)
        features, context = config.features[-1], config.features[-1] // 4
        common = self._common(rngs)
        self.context = Conv(features, context, (1, 1), kernel_init=truncated_normal(0.02), **common)
        shrink = (
            ConvNorm(config.features[-2], features, strides=2, **self._unbiased(rngs)),
            ConvNorm(context, context, strides=2, **self._unbiased(rngs)),
        )
        self.focus = nnx.List(
            [
                FocusStage(shrink if i else None, self.make_stack(len(config.depths) + i, rngs=rngs), context)
                for i in range(2)
            ]
        )
        self.overview_head = nnx.data(self._make_overview_head(rngs))

    @property
    def pooled_features(self) -> int:
        return self.config.projection

    @property
    def map_features(self) -> tuple[int, ...]:
        c = self.config
        return (*c.features[:-2], *(width + c.features[-1] // 4 for width in c.features[-2:]))

    @property
    def depths(self) -> tuple[int, ...]:
        return (*self.config.depths, *self.config.focus_depths)

    def place(self, stage: int, index: int) -> Place:
        c, focused = self.config, stage - len(self.config.depths)
        if focused < 0:
            return super().place(stage, index)
        near = super().place(len(c.depths) - 2 + focused, 0)
        rate = drop_path_rates(c.drop_path, sum(self.depths))[sum(self.depths[:stage]) + index]
        width, heads = self.map_features[len(c.depths) - 2 + focused], c.focus_heads[focused]
        return dataclasses.replace(near, stage=stage, index=index, features=width, num_heads=heads, drop_path=rate)

    def grid_of(self, stage: int) -> tuple[int, int]:
        side = -(-self.config.image_size // (4 * 2**stage))
        return side, side

    def own_mixer(self, place: Place) -> MixerSpec:
        c, stage = self.config, place.stage or 0
        focused = stage - len(c.depths)
        if focused < 0:
            return {"name": "large_kernel_convolution", "kernel_size": c.kernel_sizes[stage], "merged": c.merged}
        sizes = {"kernel_size": c.kernel_sizes[focused - 2], "context_features": c.features[-1] // 4}
        return {"name": "context_mixing", **sizes, "merged": c.merged}

    def make_stem(self, *, rngs: nnx.Rngs) -> nnx.Module:
        c, width = self.config, self.config.features[0]
        widths = (width // 2, width // 2, width, width)
        return ConvStem(c.in_channels, widths, strides=(2, 1, 2, 1), **self._unbiased(rngs))

    def make_downsample(self, stage: int, *, rngs: nnx.Rngs) -> nnx.Module:
        before, features = self.config.features[stage - 1 : stage + 1]
        return ConvNorm(before, features, strides=2, **self._unbiased(rngs))

    def make_channel(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        c, features, focused = self.config, self._width(place), (place.stage or 0) - len(self.config.depths)
        hidden = int(features * c.mlp_ratio) if focused < 0 else int(c.features[focused - 2] * c.focus_mlp_ratio)
        return ConvMLP(features, hidden, residual=True, response=True, dropout=place.dropout, **self._common(rngs))

    def make_branches(self, place: Place, *, rngs: nnx.Rngs) -> dict[str, nnx.Module | Branch]:
        features, stage = self._width(place), place.stage or 0
        common = self._common(rngs)

        def position() -> Branch:
            conv = DepthwiseConv(features, 3, kernel_init=truncated_normal(0.02), **common)
            return Branch(conv, norm=None, drop=None)

        def scaled(module: nnx.Module) -> Branch:
            focused = stage >= len(self.config.depths)
            has_scale = self.config.scaled[stage - 2 - len(self.config.depths) if focused else stage]
            return Branch(module, skip=Affine(features, **common) if has_scale else None)

        mixer, channel = self.make_mixer(place, rngs=rngs), self.make_channel(place, rngs=rngs)
        if stage >= len(self.config.depths):
            return {
                "position": position(),
                "mixer": scaled(mixer),
                "second_position": position(),
                "channel": scaled(channel),
            }
        gate = SqueezeExcite(features, max(16, features // 8), activation=gelu, **common)
        return {
            "position": position(),
            "mixer": scaled(RepConv(mixer, BatchNorm(features, **common), gate, channel)),
        }

    def make_block(self, place: Place, *, rngs: nnx.Rngs) -> nnx.Module:
        c, focused = self.config, (place.stage or 0) - len(self.config.depths)
        if focused < 0:
            return super().make_block(place, rngs=rngs)
        options = {"features": self._width(place), "drop_path": place.drop_path, **place.dtypes}
        first = focused == 0 and place.index == 0
        branches = self.make_branches(place, rngs=rngs)
        return FocusBlock(branches, context=c.features[-1] // 4, first=first, **options, rngs=rngs)

    def make_norm(self, *, rngs: nnx.Rngs) -> Any:
        c = self.config
        options: dict[str, Any] = {"kernel_size": 1, "activation": silu, **self._unbiased(rngs)}
        return ConvNorm(c.features[-1] + c.features[-1] // 4, c.projection, **options)

    def reset_head(self, num_classes: int, *, rngs: nnx.Rngs | None = None) -> None:
        """Replaces the head and the overview's by fresh ones for ``num_classes``; 0 removes them."""
        rngs = nnx.Rngs(0) if rngs is None else rngs
        super().reset_head(num_classes, rngs=rngs)
        self.overview_head = nnx.data(self._make_overview_head(rngs))

    def features(
        self, images: jax.Array, indices: Sequence[int] | None = None, *, norm: bool = False
    ) -> list[jax.Array]:
        """As :meth:`Pyramid.features`: maps of the base net, and as the last two those of the focus net, with the
        context as last features."""
        maps, _ = self._run(images)
        if norm:
            maps[-1] = self.norm(maps[-1])
        return maps if indices is None else [maps[i] for i in indices]

    def pooled(self, images: jax.Array) -> jax.Array:
        maps, overview = self._run(images)
        if self.overview_head is not None and self.sowing(AuxLogits, "overview"):
            self.sow(AuxLogits, "overview", self.overview_head(overview))
        return self.pool(maps[-1])

    def _run(self, images: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        """The maps of :meth:`features`, and that of the overview net."""
        check_images(images, self.config.in_channels)
        x, maps = images, []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        *maps, base, overview = maps
        context = self.context(overview)
        enlarged = resize_bilinear(context, (base.shape[1], base.shape[2]))
        x = self.focus[0](jnp.concatenate([base, enlarged], axis=-1), enlarged)
        return [*maps, x, self.focus[1](x, context)], overview

    def remedy(self, missing: Sequence[str], unexpected: Sequence[str]) -> str:
        merged, branched = (any(part in name for name in unexpected) for part in ("lk_origin.bias", ".dil_conv_k"))
        if not self.config.merged and merged:
            return "the file has the form for deployment, with merged kernels: make the model with merged=True"
        if self.config.merged and branched:
            return (
                "the file has the form for training, whose kernels have branches: make the model with merged=False, "
                "and merge them by zoo.reparameterize(model, only=layers.LargeKernelConvolution)"
            )
        return ""

    def depth_of(self, path: list[str]) -> int:
        c = self.config
        if path[0] == "focus":
            before = sum(self.depths[: len(c.depths) + int(path[1])])
            return before + (int(path[3]) + 1 if path[2] == "blocks" else 0)
        if path[0] == "context" or path[0] == "overview_head":
            return sum(c.depths)
        return super().depth_of(path) if path[0] == "stages" else sum(self.depths) + 1

    def _make_overview_head(self, rngs: nnx.Rngs) -> OverviewHead | None:
        c = self.config
        if not (c.overview_head and c.num_classes):
            return None
        return OverviewHead(c.features[-1], c.num_classes, **self._common(rngs))

    def _unbiased(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"use_bias": False, "kernel_init": truncated_normal(0.02), **self._common(rngs)}

    def _common(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype, "rngs": rngs}


for _size, _crop in CROPS.items():
    register_family(
        "overlock",
        OverLoCK,
        OverLoCKConfig,
        {name: options for name, options in VARIANTS.items() if name.split("_")[1] == _size},
        our_choice=("overlock_nano",),
        parameters=PARAMETERS,
        rules=RULES,
        preprocess={"crop_fraction": _crop},
        paper=(221,),
    )
