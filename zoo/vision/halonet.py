"""HaloNet: Scaling Local Self-Attention for Parameter Efficient Visual Backbones (Vaswani et al., CVPR 2021,
arXiv:2103.12731).

A ResNet in which halo attention (:mod:`layers.attention.halo`) replaces the 3x3 convolution of some bottlenecks:

    bottleneck:  y = f(shortcut(x) + N(conv1x1(f(N(halo(f(N(conv1x1(x)))))))))        f is ReLU or SiLU

Blocks are of 8x8 tokens, the halo 2 or 3 wide. The paper's H0 to H7 were not released. These models are timm's
(1.0.31), at 256 pixels: 26t 12.5 M parameters, 79.1 % top-1; 50ts 22.7 M, 81.7 %; se33ts, whose other bottlenecks are
gated by squeeze-and-excitation and which has a final convolution, 13.7 M, 81.0 %; eca_halonext26ts, with convolutions
in groups and gates by ECA, 10.8 M, 79.5 %; h1, the paper's H1, 8.1 M, for which timm has no weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from layers.bottleneck import Bottleneck
from layers.mixer import MixerSpec, Place
from layers.patch import ConvNorm
from primitives.exponential import silu
from zoo.naming import Naming, Rearrange
from zoo.registry import freeze, register_family
from zoo.vision.releases import parse_releases
from zoo.vision.resnet import ResNet, ResNetConfig, ResNetStem


@dataclasses.dataclass(frozen=True)
class HaloNetConfig(ResNetConfig):
    """Hyper-parameters of HaloNet.

    Attributes:
      widths: features between the 1x1 convolutions of each stage's bottlenecks.
      num_heads, halos: of the attention of each stage.
      window: tokens along each side of a block of attention.
      head_dim: of queries and keys; None is width / heads.
      attended: indices of the bottlenecks with attention, for each stage; "every" for all.
      activation: of all bottlenecks and convolutions.
      stem_pool: whether max-pooling follows the stem; if not, its last convolution has stride 2.
      group_width: features of a group of the 3x3 convolutions; None is a single group.
      gate: of the channels inside the bottlenecks without attention, before their last convolution.
      final: features of a 1x1 convolution before the average pool; None for none.
    """

    stem: tuple[int, ...] = (24, 32, 64)
    image_size: int = 256
    widths: tuple[int, ...] = (64, 128, 256, 512)
    num_heads: tuple[int, ...] = (8, 8, 8, 8)
    halos: tuple[int, ...] = (3, 3, 3, 3)
    window: int = 8
    head_dim: int | None = None
    attended: tuple[Any, ...] = ((), (), (1,), "every")
    activation: Callable[[jax.Array], jax.Array] = silu
    stem_pool: bool = True
    group_width: int | None = None
    final: int | None = None


class HaloNet(ResNet):
    """HaloNet; names as in :class:`ResNet`, with ``norm`` if it has a final convolution. A user's mixer is used in all
    bottlenecks.
    """

    config: HaloNetConfig

    @property
    def pooled_features(self) -> int:
        return self.config.final or super().pooled_features

    def own_mixer(self, place: Place) -> MixerSpec:
        c, stage = self.config, place.stage or 0
        attended = c.attended[stage]
        if attended != "every" and place.index not in attended:
            return None
        strides = 2 if stage and not place.index else 1
        sizes = {"block": c.window, "halo": c.halos[stage], "head_dim": c.head_dim}
        return {"name": "halo", **sizes, "strides": strides, "use_out": False}

    def make_stem(self, *, rngs: nnx.Rngs) -> ResNetStem:
        c = self.config
        return ResNetStem(c.in_channels, c.stem, pool=c.stem_pool, activation=c.activation, **self._common(rngs))

    def make_block(self, place: Place, *, rngs: nnx.Rngs) -> Bottleneck:
        c, features, stage = self.config, self._width(place), place.stage or 0
        source = features if place.index else c.features[stage - 1] if stage else c.stem[-1]
        inside = dataclasses.replace(place, features=c.widths[stage])
        mixer = None if self.mixer_spec(inside) is None else self.make_mixer(inside, rngs=rngs)
        alone: dict[str, Any] = {}
        if mixer is None:
            alone["groups"] = 1 if c.group_width is None else c.widths[stage] // c.group_width
            alone["gate"] = c.gate[stage] if isinstance(c.gate, tuple) else c.gate
        return Bottleneck(
            source,
            features,
            width=c.widths[stage],
            mixer=mixer,
            strides=2 if stage and not place.index else 1,
            shortcut=c.shortcut,
            gate_inside=True,
            activation=c.activation,
            zero_init=c.zero_init,
            drop_path=place.drop_path,
            **alone,
            **self._common(rngs),
        )

    def make_norm(self, *, rngs: nnx.Rngs) -> Any:
        c = self.config
        if c.final is None:
            return None
        options: dict[str, Any] = {"kernel_size": 1, "use_bias": False, "activation": c.activation}
        return ConvNorm(c.features[-1], c.final, **options, **self._common(rngs))


_SHALLOW: dict[str, Any] = {"depths": (2, 2, 2, 2), "halos": (2, 2, 2, 2)}
VARIANTS: dict[str, dict[str, Any]] = {
    "halonet26t": {**_SHALLOW, "activation": jax.nn.relu},
    "halonet50ts": {
        "attended": ((), (3,), (1, 3, 5), (1,)),
        "num_heads": (8, 4, 8, 8),
    },
    "sehalonet33ts": {
        "features": (256, 512, 1024, 1536),
        "depths": (2, 3, 3, 2),
        "attended": ((), (2,), (2,), "every"),
        "stem_pool": False,
        "gate": freeze([{"name": "squeeze_excite", "hidden": hidden} for hidden in (8, 8, 16, 32)]),
        "final": 1280,
    },
    "eca_halonext26ts": {**_SHALLOW, "head_dim": 16, "group_width": 16, "gate": "eca"},
    "halonet_h1": {
        "features": (64, 128, 256, 512),
        "depths": (3, 3, 10, 3),
        "attended": ("every",) * 4,
        "stem": (64,),
        "activation": jax.nn.relu,
    },
    # Our choice, for two cores: 8x8 and 4x4 tokens from 32x32 pixels, in blocks of 4x4.
    "halonet_nano": {
        "image_size": 32,
        "stem": (16, 16, 32),
        "features": (64, 128),
        "widths": (32, 64),
        "depths": (2, 2),
        "num_heads": (2, 4),
        "halos": (1, 1),
        "window": 4,
        "attended": ((1,), (1,)),
        "drop_path": 0.1,
    },
}

RELEASES = parse_releases("""
halonet26t: a1h_in1k 1000 imagenet 0.95
halonet50ts: a1h_in1k 1000 imagenet 0.94
sehalonet33ts: ra2_in1k 1000 imagenet 0.94
eca_halonext26ts: c1_in1k 1000 imagenet 0.94
""")

# Of timm 1.0.31.
PARAMETERS = {
    "halonet26t": 12_480_288,
    "halonet50ts": 22_733_280,
    "sehalonet33ts": 13_691_712,
    "eca_halonext26ts": 10_756_885,
    "halonet_h1": 8_100_056,
}

_THEIRS, _OURS = "stages.{s}.{b}", "stages.{s}.blocks.{b}"
_STEM = "stages.0.downsample"


def _pointwise(theirs: str, ours: str) -> list[tuple[Any, ...]]:
    """A 1x1 convolution of theirs, a linear layer of ours."""
    theirs, ours = f"{_THEIRS}.{theirs}", f"{_OURS}.{ours}"
    return [(f"{theirs}.weight", f"{ours}.kernel", Rearrange("o i 1 1 -> i o")), (theirs, ours)]


def _naming(attended: tuple[Any, ...], convolutions: int) -> Naming:
    """timm's names, in which the norm after attention is named differently from that after a convolution;
    ``convolutions`` is the number of the stem's.
    """
    blocks = [
        (stage, block) for stage, where in enumerate(attended) for block in (["{b}"] if where == "every" else where)
    ]
    return Naming(
        [
            *((f"stages.{s}.{b}.post_attn", f"stages.{s}.blocks.{b}.mixer_norm") for s, b in blocks),
            (f"{_THEIRS}.conv2_kxk.bn", f"{_OURS}.mixer_norm"),
            *((f"stem.conv{i + 1}.conv", f"{_STEM}.conv.{i}.conv") for i in range(2)),
            *((f"stem.conv{i + 1}.bn", f"{_STEM}.conv.{i}.norm") for i in range(2)),
            (f"stem.conv{convolutions}.conv", f"{_STEM}.conv.2" if convolutions > 1 else f"{_STEM}.conv"),
            (f"stem.conv{convolutions}.bn", f"{_STEM}.norm"),
            *_pointwise("conv1_1x1.conv", "reduce"),
            (f"{_THEIRS}.conv1_1x1.bn", f"{_OURS}.reduce_norm"),
            *_pointwise("self_attn.q", "mixer.query"),
            *_pointwise("self_attn.kv", "mixer.key_value"),
            (f"{_THEIRS}.self_attn.pos_embed.height_rel", f"{_OURS}.mixer.rows"),
            (f"{_THEIRS}.self_attn.pos_embed.width_rel", f"{_OURS}.mixer.columns"),
            (f"{_THEIRS}.conv2_kxk.conv", f"{_OURS}.mixer"),
            *_pointwise("attn.fc1", "gate.squeeze"),
            *_pointwise("attn.fc2", "gate.excite"),
            (f"{_THEIRS}.attn.conv.weight", f"{_OURS}.gate.kernel", Rearrange("1 1 k -> k")),
            *_pointwise("conv3_1x1.conv", "expand"),
            (f"{_THEIRS}.conv3_1x1.bn", f"{_OURS}.expand_norm"),
            (f"{_THEIRS}.shortcut.conv", f"{_OURS}.shortcut.0"),
            (f"{_THEIRS}.shortcut.bn", f"{_OURS}.shortcut.1"),
            ("final_conv.conv", "norm.conv"),
            ("final_conv.bn", "norm.norm"),
            ("head.fc", "head"),
        ]
    )


for _name, _options in VARIANTS.items():
    _config = HaloNetConfig(**_options)
    register_family(
        "halonet",
        HaloNet,
        HaloNetConfig,
        {_name: _options},
        our_choice=("halonet_nano",),
        parameters=PARAMETERS,
        releases=RELEASES,
        rules={"timm": _naming(_config.attended, len(_config.stem))},
        paper=(39,),
    )
