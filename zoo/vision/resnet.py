"""ResNet: Deep Residual Learning for Image Recognition (He et al., CVPR 2016, arXiv:1512.03385).

    image -> 7x7 convolution of stride 2, norm, ReLU -> 3x3 max-pool of stride 2 -> 4 stages -> average pool -> head

    basic block:  x = relu(shortcut(x) + N(conv3x3(relu(N(conv3x3(x))))))
    bottleneck:   x = relu(shortcut(x) + N(conv1x1(relu(N(conv3x3(relu(N(conv1x1(x)))))))))

The first block of stages 2 to 4 halves the map, in a bottleneck by its 3x3 convolution (v1.5). "d" models (He et al.,
Bag of Tricks, CVPR 2019) have three 3x3 convolutions in the stem, of 32, 32 and 64 features, and average 2x2 tokens in
the shortcuts that halve the map; the first convolution of "t" models has 24 features. ResNeXt (Xie et al., CVPR 2017)
groups the 3x3 convolution, Wide ResNet (Zagoruyko, Komodakis, 2016) widens it; SE-ResNet (Hu et al., 2018) and ECA-Net
(Wang et al., CVPR 2020) gate the channels of each block's output.

A ``mixer`` replaces the bottlenecks' 3x3 convolutions: it mixes at the bottleneck's width, and blocks that halve the
map average its output over 2x2 tokens, as in BoTNet (Srinivas et al., CVPR 2021). Blocks that a ``pattern`` does not
name keep the convolution: BoTNet-50 is ``pattern={"3.every": "attention"}``. Basic blocks have no place for a mixer.

Published for ImageNet-1k at 224: ResNet-50 25.6 M parameters, 75.3 % top-1; 101 44.5 M, 76.4 %; 152 60.2 M, 77.0 %
(authors' models, center crop); with ECA, 18 to 152 70.9, 74.2, 77.4, 78.7 and 78.9 % (the ``eca_resnet*``, whose names
end with the kernel sizes of the four stages). Sizes and names are those of torchvision, which timm shares; the releases
listed here are timm's checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.bottleneck import BasicBlock, Bottleneck, Shortcut
from layers.gates import Gate
from layers.initializers import variance_scaling
from layers.linear import Conv
from layers.mixer import MixerSpec, Place
from layers.module import Module
from layers.norm import BatchNorm
from layers.patch import ConvNorm
from layers.pool import max_pool
from layers.sequential import Sequential
from zoo.backbones.pyramid import Pyramid, PyramidConfig
from zoo.naming import Naming, Rearrange
from zoo.registry import freeze, register_family
from zoo.vision.releases import parse_releases


@dataclasses.dataclass(frozen=True)
class ResNetConfig(PyramidConfig):
    """Hyper-parameters of ResNet.

    Attributes:
      features: of each stage's output; a bottleneck's width is ``width`` times that.
      num_heads: for a mixer in a bottleneck.
      block: "bottleneck" or "basic".
      stem: features of the convolutions before the max-pool: one is 7x7, several are 3x3, the first of stride 2.
      width: features between a bottleneck's 1x1 convolutions / features of its output.
      groups: of a bottleneck's 3x3 convolution.
      shortcut: in blocks that change the shape, a "convolution", or an "average" of 2x2 tokens before one.
      gate: of channels, at the end of each block: see :func:`layers.gates.create_gate`; a tuple has one for each stage.
      zero_init: whether the last norm's scale of each block starts at 0.
    """

    features: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    block: Literal["bottleneck", "basic"] = "bottleneck"
    stem: tuple[int, ...] = (64,)
    width: float = 0.25
    groups: int = 1
    shortcut: Shortcut = "convolution"
    gate: Gate | tuple[Gate, ...] | None = None
    zero_init: bool = False


class ResNetStem(Module):
    """Convolutions, each followed by a norm and an activation, the first of stride 2; then 3x3 max-pooling of stride 2
    or, without ``pool``, stride 2 in the last convolution too.
    """

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, ...],
        *,
        pool: bool = True,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        conv: dict[str, Any] = {"use_bias": False, "kernel_init": variance_scaling(2.0, "fan_out", "normal"), **common}
        sizes, last = (in_channels, *widths), len(widths) - 1
        size = 3 if last else 7
        before = [
            ConvNorm(sizes[i], sizes[i + 1], strides=1 if i else 2, activation=activation, **conv) for i in range(last)
        ]
        strides = 1 if last and pool else 2
        final = Conv(sizes[-2], sizes[-1], (size, size), strides=strides, padding=size // 2, **conv)
        self.conv = Sequential([*before, final]) if before else final
        self.norm = BatchNorm(widths[-1], **common)
        self.pool, self.activation = pool, activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, height / 4, width / 4, widths[-1]), rounded up."""
        x = self.activation(self.norm(self.conv(x)))
        return max_pool(x, 3, strides=2, padding=1) if self.pool else x


class ResNet(Pyramid):
    """ResNet; names as in :class:`Pyramid`, without ``norm``."""

    config: ResNetConfig

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        if config.block not in ("bottleneck", "basic"):
            raise ValueError(f'block is "bottleneck" or "basic", got {config.block!r}')
        if config.block == "basic" and (config.mixer is not None or config.pattern):
            place = 'it stands between the 1x1 convolutions of block="bottleneck"'
            raise ValueError(f"basic blocks have no place for a mixer: {place}")
        if config.shared:
            shape = "the first block of a ResNet's stage has another shape than the rest"
            raise ValueError(f"shared=True makes all blocks of a stage one: {shape}")
        super().__init__(config, rngs=rngs)

    def make_stem(self, *, rngs: nnx.Rngs) -> ResNetStem:
        return ResNetStem(self.config.in_channels, self.config.stem, **self._common(rngs))

    def own_mixer(self, place: Place) -> MixerSpec:
        return None  # the block's 3x3 convolution

    def make_block(self, place: Place, *, rngs: nnx.Rngs) -> BasicBlock | Bottleneck:
        c, features, stage = self.config, self._width(place), place.stage or 0
        source = features if place.index else c.features[stage - 1] if stage else c.stem[-1]
        options: dict[str, Any] = {
            "strides": 2 if stage and not place.index else 1,
            "shortcut": c.shortcut,
            "gate": c.gate[stage] if isinstance(c.gate, tuple) else c.gate,
            "zero_init": c.zero_init,
            "drop_path": place.drop_path,
            **self._common(rngs),
        }
        if c.block == "basic":
            return BasicBlock(source, features, **options)
        inside = dataclasses.replace(place, features=int(features * c.width))
        mixer = None if self.mixer_spec(inside) is None else self.make_mixer(inside, rngs=rngs)
        return Bottleneck(
            source, features, width=inside.features, mixer=mixer, groups=c.groups if mixer is None else 1, **options
        )

    def _common(self, rngs: nnx.Rngs) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype, "rngs": rngs}


_BASIC: dict[str, Any] = {"block": "basic", "features": (64, 128, 256, 512)}
_D: dict[str, Any] = {"stem": (32, 32, 64), "shortcut": "average"}
_T: dict[str, Any] = {**_D, "stem": (24, 32, 64)}
_ECA: dict[str, Any] = {"gate": "eca"}
_18, _34, _101, _152 = ({"depths": depths} for depths in ((2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)))

VARIANTS: dict[str, dict[str, Any]] = {
    "resnet18": {**_BASIC, **_18},
    "resnet34": {**_BASIC, **_34},
    "resnet50": {},
    "resnet101": _101,
    "resnet152": _152,
    "resnet10t": {**_BASIC, **_T, "depths": (1, 1, 1, 1), "image_size": 176},
    "resnet14t": {**_T, "depths": (1, 1, 1, 1), "image_size": 176},
    "resnet18d": {**_BASIC, **_D, **_18},
    "resnet26": _18,
    "resnet26d": {**_D, **_18},
    "resnet26t": {**_T, **_18, "image_size": 256},
    "resnet34d": {**_BASIC, **_D, **_34},
    "resnet50d": _D,
    "resnet101d": {**_D, **_101, "image_size": 256},
    "resnet152d": {**_D, **_152, "image_size": 256},
    "resnext50_32x4d": {"groups": 32, "width": 0.5},
    "wide_resnet50_2": {"width": 0.5},
    "wide_resnet101_2": {**_101, "width": 0.5},
    "seresnet50": {"gate": "squeeze_excite"},
    "ecaresnetlight": {**_ECA, "shortcut": "average", "depths": (1, 1, 11, 3)},
    "ecaresnet26t": {**_ECA, **_T, **_18, "image_size": 256},
    "ecaresnet50t": {**_ECA, **_T, "image_size": 256},
    "ecaresnet50d": {**_ECA, **_D},
    "ecaresnet101d": {**_ECA, **_D, **_101},
    "ecaresnet200d": {**_ECA, **_D, "depths": (3, 24, 36, 3), "image_size": 256},
    "ecaresnet269d": {**_ECA, **_D, "depths": (3, 30, 48, 8), "image_size": 320},
    # Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels.
    "resnet_nano": {
        **_D,
        "image_size": 32,
        "stem": (16, 16, 32),
        "features": (64, 128),
        "depths": (2, 2),
        "num_heads": (2, 4),
        "drop_path": 0.1,
    },
}

# The models of ECA-Net's authors, named by the kernel sizes of the gates in each stage.
ECA_VARIANTS = {
    f"eca_resnet{name}_k{sizes}": {**size, "gate": freeze([{"name": "eca", "kernel_size": int(k)} for k in sizes])}
    for name, size, sizes in (
        ("18", {**_BASIC, **_18}, "3577"),
        ("34", {**_BASIC, **_34}, "3357"),
        ("50", {}, "3557"),
        ("101", _101, "3357"),
        ("152", _152, "3357"),
    )
}

RELEASES = parse_releases("""
resnet18: a1_in1k 1000 imagenet 0.95; a2_in1k 1000 imagenet 0.95; a3_in1k 1000 imagenet 0.95 160px
resnet18: tv_in1k 1000 imagenet 0.875 bilinear bsd-3-clause
resnet18: fb_ssl_yfcc100m_ft_in1k 1000 imagenet 0.875 bilinear cc-by-nc-4.0
resnet18: fb_swsl_ig1b_ft_in1k 1000 imagenet 0.875 bilinear cc-by-nc-4.0; gluon_in1k 1000 imagenet 0.875
resnet34: a1_in1k 1000 imagenet 0.95; a2_in1k 1000 imagenet 0.95; a3_in1k 1000 imagenet 0.95 160px
resnet34: bt_in1k 1000 imagenet 0.875; ra4_e3600_r224_in1k 1000 half 0.9
resnet34: tv_in1k 1000 imagenet 0.875 bilinear bsd-3-clause; gluon_in1k 1000 imagenet 0.875
resnet50: a1_in1k 1000 imagenet 0.95; a1h_in1k 1000 imagenet 0.9 176px; a2_in1k 1000 imagenet 0.95
resnet50: a3_in1k 1000 imagenet 0.95 160px; b1k_in1k 1000 imagenet 0.95; b2k_in1k 1000 imagenet 0.95
resnet50: c1_in1k 1000 imagenet 0.95; c2_in1k 1000 imagenet 0.95; d_in1k 1000 imagenet 0.95
resnet50: ram_in1k 1000 imagenet 0.875; am_in1k 1000 imagenet 0.875; ra_in1k 1000 imagenet 0.875
resnet50: bt_in1k 1000 imagenet 0.875; tv_in1k 1000 imagenet 0.875 bilinear bsd-3-clause
resnet50: tv2_in1k 1000 imagenet 0.875 bilinear bsd-3-clause 176px; bamboo 0 imagenet 1.0 unstated
resnet50: fb_ssl_yfcc100m_ft_in1k 1000 imagenet 0.875 bilinear cc-by-nc-4.0
resnet50: fb_swsl_ig1b_ft_in1k 1000 imagenet 0.875 bilinear cc-by-nc-4.0; gluon_in1k 1000 imagenet 0.875
resnet101: a1h_in1k 1000 imagenet 0.95; a1_in1k 1000 imagenet 0.95; a2_in1k 1000 imagenet 0.95
resnet101: a3_in1k 1000 imagenet 0.95 160px; tv_in1k 1000 imagenet 0.875 bilinear bsd-3-clause
resnet101: tv2_in1k 1000 imagenet 0.875 bilinear bsd-3-clause 176px; gluon_in1k 1000 imagenet 0.875
resnet152: a1h_in1k 1000 imagenet 0.95; a1_in1k 1000 imagenet 0.95; a2_in1k 1000 imagenet 0.95
resnet152: a3_in1k 1000 imagenet 0.95 160px; tv_in1k 1000 imagenet 0.875 bilinear bsd-3-clause
resnet152: tv2_in1k 1000 imagenet 0.875 bilinear bsd-3-clause 176px; gluon_in1k 1000 imagenet 0.875
resnet10t: c3_in1k 1000 imagenet 0.875
resnet14t: c3_in1k 1000 imagenet 0.875
resnet18d: ra2_in1k 1000 imagenet 0.875; ra4_e3600_r224_in1k 1000 half 0.9
resnet26: bt_in1k 1000 imagenet 0.875
resnet26d: bt_in1k 1000 imagenet 0.875
resnet26t: ra2_in1k 1000 imagenet 0.94
resnet34d: ra2_in1k 1000 imagenet 0.875
resnet50d: ra2_in1k 1000 imagenet 0.875; ra4_e3600_r224_in1k 1000 half 0.95; a1_in1k 1000 imagenet 0.95
resnet50d: a2_in1k 1000 imagenet 0.95; a3_in1k 1000 imagenet 0.95 160px; gluon_in1k 1000 imagenet 0.875
resnet101d: ra2_in1k 1000 imagenet 0.95; gluon_in1k 1000 imagenet 0.875 224px
resnet152d: ra2_in1k 1000 imagenet 0.95; gluon_in1k 1000 imagenet 0.875 224px
resnext50_32x4d: a1h_in1k 1000 imagenet 0.95; a1_in1k 1000 imagenet 0.95; a2_in1k 1000 imagenet 0.95
resnext50_32x4d: a3_in1k 1000 imagenet 0.95 160px; ra_in1k 1000 imagenet 0.875
resnext50_32x4d: tv_in1k 1000 imagenet 0.875 bilinear bsd-3-clause
resnext50_32x4d: tv2_in1k 1000 imagenet 0.875 bilinear bsd-3-clause 176px
resnext50_32x4d: fb_ssl_yfcc100m_ft_in1k 1000 imagenet 0.875 bilinear cc-by-nc-4.0
resnext50_32x4d: fb_swsl_ig1b_ft_in1k 1000 imagenet 0.875 bilinear cc-by-nc-4.0; gluon_in1k 1000 imagenet 0.875
wide_resnet50_2: racm_in1k 1000 imagenet 0.875; tv_in1k 1000 imagenet 0.875 bilinear bsd-3-clause
wide_resnet50_2: tv2_in1k 1000 imagenet 0.875 bilinear bsd-3-clause 176px
wide_resnet101_2: tv_in1k 1000 imagenet 0.875 bilinear bsd-3-clause
wide_resnet101_2: tv2_in1k 1000 imagenet 0.875 bilinear bsd-3-clause 176px
seresnet50: a1_in1k 1000 imagenet 0.95; a2_in1k 1000 imagenet 0.95; a3_in1k 1000 imagenet 0.95 160px
seresnet50: ra2_in1k 1000 imagenet 0.875
ecaresnetlight: miil_in1k 1000 imagenet 0.875
ecaresnet26t: ra2_in1k 1000 imagenet 0.875
ecaresnet50t: ra2_in1k 1000 imagenet 0.875; a1_in1k 1000 imagenet 0.95 224px; a2_in1k 1000 imagenet 0.95 224px
ecaresnet50t: a3_in1k 1000 imagenet 0.95 160px
ecaresnet50d: miil_in1k 1000 imagenet 0.875
ecaresnet101d: miil_in1k 1000 imagenet 0.875
ecaresnet269d: ra2_in1k 1000 imagenet 0.95
""")

# Of timm 1.0.31.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet10t": 5_435_488,
    "resnet14t": 10_081_632,
    "resnet18d": 11_708_744,
    "resnet26": 15_995_176,
    "resnet26d": 16_014_408,
    "resnet26t": 16_011_872,
    "resnet34d": 21_816_904,
    "resnet50d": 25_576_264,
    "resnet101d": 44_568_392,
    "resnet152d": 60_212_040,
    "resnext50_32x4d": 25_028_904,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "seresnet50": 28_088_024,
    "ecaresnetlight": 30_162_046,
    "ecaresnet26t": 16_011_916,
    "ecaresnet50t": 25_573_814,
    "ecaresnet50d": 25_576_350,
    "ecaresnet101d": 44_568_563,
    "ecaresnet200d": 64_693_400,
    "ecaresnet269d": 102_093_077,
}
# Of the authors' code.
ECA_PARAMETERS = {
    "eca_resnet18_k3577": 11_689_556,
    "eca_resnet34_k3357": 21_797_744,
    "eca_resnet50_k3557": 25_557_112,
    "eca_resnet101_k3357": 44_549_317,
    "eca_resnet152_k3357": 60_193_042,
}

_POINTWISE = Rearrange("o i 1 1 -> i o")


def _stage(stage: int, eca: str) -> list[tuple[Any, ...]]:
    """The rules of a stage, counted from 1 on the released side; ``eca`` is their name of that gate."""

    def rule(theirs: str, ours: str, *operations: Any) -> tuple[Any, ...]:
        return f"layer{stage + 1}.{{b}}.{theirs}", f"stages.{stage}.blocks.{{b}}.{ours}", *operations

    return [
        rule("conv1.weight", "reduce.kernel", _POINTWISE),
        rule("bn1", "reduce_norm"),
        rule("conv2", "mixer"),
        rule("bn2", "mixer_norm"),
        rule("conv3.weight", "expand.kernel", _POINTWISE),
        rule("bn3", "expand_norm"),
        rule("conv1", "first.conv"),
        rule("bn1", "first.norm"),
        rule("conv2", "second.conv"),
        rule("bn2", "second_norm"),
        rule("downsample.{i}", "shortcut.{i}"),
        *(
            part
            for theirs, ours in (("fc1", "squeeze"), ("fc2", "excite"))
            for part in (
                rule(f"se.{theirs}.weight", f"gate.{ours}.kernel", _POINTWISE),
                rule(f"se.{theirs}", f"gate.{ours}"),
            )
        ),
        rule(f"{eca}.conv.weight", "gate.kernel", Rearrange("1 1 k -> k")),
    ]


_STEM = "stages.0.downsample"


def _naming(eca: str) -> Naming:
    return Naming(
        [
            ("conv1", f"{_STEM}.conv"),
            ("conv1.0", f"{_STEM}.conv.0.conv"),
            ("conv1.1", f"{_STEM}.conv.0.norm"),
            ("conv1.3", f"{_STEM}.conv.1.conv"),
            ("conv1.4", f"{_STEM}.conv.1.norm"),
            ("conv1.6", f"{_STEM}.conv.2"),
            ("bn1", f"{_STEM}.norm"),
            *(rule for stage in range(4) for rule in _stage(stage, eca)),
            ("fc", "head"),
        ]
    )


# torchvision's names, and timm's.
RULES: dict[str, Naming] = {"timm": _naming("se")}

register_family(
    "resnet",
    ResNet,
    ResNetConfig,
    VARIANTS,
    our_choice=("resnet_nano",),
    parameters=PARAMETERS,
    releases=RELEASES,
    rules=RULES,
)
register_family(
    "resnet",
    ResNet,
    ResNetConfig,
    ECA_VARIANTS,
    parameters=ECA_PARAMETERS,
    rules={"ecanet": _naming("eca")},
    paper=(41,),
)
