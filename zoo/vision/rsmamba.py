"""RSMamba: Remote Sensing Image Classification With State Space Model (Chen et al., 2024, arXiv:2403.19654).

    image -> 16x16 convolution of stride 8 -> + positions -> blocks -> norm -> average pool -> norm -> linear
    block: x = x + multi_path(norm(x))        (:mod:`layers.multi_path`); all blocks share one norm

Mamba reads the patches forwards, backwards and in random order with the same parameters. Patches overlap; with zeros at
the bottom and the right 224 pixels give 28x28 tokens. Published F1 scores on UC Merced (21 classes), AID (30) and
RESISC45 (45): 95.25, 92.63 and 95.18. The heads here are those of RESISC45. ``rsmamba_nano_32`` is our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.block import Branch
from layers.initializers import variance_scaling
from layers.linear import Conv
from layers.mixer import Mixer, MixerSpec, Place
from layers.module import Module
from layers.norm import create_norm
from layers.tokens import Tokens
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Naming, Rearrange
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class RSMambaConfig(IsotropicConfig):
    """Hyper-parameters of RSMamba.

    Attributes:
      stride: distance of neighboring patches, in pixels.
      inner: the mixer that all paths share.
      paths, gate: as in :class:`layers.multi_path.MultiPath`.
    """

    num_classes: int = 45
    features: int = 192
    depth: int = 24
    num_heads: int = 6
    stride: int = 8
    inner: Any = "mamba"
    paths: tuple[str, ...] = ("forward", "reverse", "shuffle")
    gate: bool = True
    class_token: bool = False
    pool: Any = "average"


class OverlappingPatches(Module):
    """Overlapping patches: a convolution without bias whose stride is smaller than its size, with zeros at the bottom
    and the right where patches reach beyond the image. Parameter: ``conv.kernel``.
    """

    def __init__(self, in_channels: int, features: int, size: int, stride: int, **common: Any):
        init = variance_scaling(1.0, "fan_in", "normal")
        shape: dict[str, Any] = {"strides": stride, "padding": "VALID", "use_bias": False, "kernel_init": init}
        self.conv = Conv(in_channels, features, (size, size), **shape, **common)
        self.size, self.stride = size, stride

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of an image."""
        return -(-height // self.stride), -(-width // self.stride)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, height / stride, width / stride, features), rounded up."""
        sides = images.shape[1:3]
        reach = [(count - 1) * self.stride + self.size for count in self.grid(*sides)]
        beyond = [(0, max(end - side, 0)) for end, side in zip(reach, sides, strict=True)]
        return self.conv(jnp.pad(images, ((0, 0), *beyond, (0, 0))))


class AfterSharedNorm(Mixer):
    """A mixer after a layer norm whose scale and shift all blocks share: one pair, which blocks pass on."""

    shares = True

    def __init__(self, inner: Mixer, epsilon: float):
        self.inner, self.epsilon = inner, epsilon
        self.layouts = inner.layouts  # type: ignore[misc]

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return self.inner.honors

    @property
    def complexity(self) -> float:
        return self.inner.complexity

    def mix(self, x: jax.Array, tokens: Tokens, /, *beside: Any) -> Any:
        scale, shift = beside[0]
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide = wide - wide.mean(-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon)
        return self.inner((wide * scale + shift).astype(x.dtype), tokens), beside[0]


class RSMamba(Isotropic):
    """RSMamba; names as in :class:`Isotropic`, with ``shared_norm``, ``blocks.N.mixer.inner``, ``norm`` and
    ``pool_norm``.
    """

    config: RSMambaConfig
    stem = (*Isotropic.stem, "shared_norm")

    def __init__(self, config: RSMambaConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        common = {"dtype": config.dtype, "param_dtype": config.param_dtype, "rngs": rngs}
        self.shared_norm = create_norm(config.norm, config.features, epsilon=config.norm_epsilon, **common)
        self.pool_norm = nnx.data(create_norm(config.norm, config.features, epsilon=config.norm_epsilon, **common))

    def own_mixer(self, place: Place) -> MixerSpec:
        c = self.config
        return {"name": "multi_path", "inner": c.inner, "paths": c.paths, "gate": c.gate}

    def make_mixer(self, place: Place, *, rngs: nnx.Rngs) -> Mixer:
        return AfterSharedNorm(super().make_mixer(place, rngs=rngs), self.config.norm_epsilon)

    def make_branches(self, place: Place, *, rngs: nnx.Rngs) -> dict[str, nnx.Module | Branch]:
        return {"mixer": Branch(self.make_mixer(place, rngs=rngs), norm=None)}

    def make_stem(self, *, rngs: nnx.Rngs) -> OverlappingPatches:
        c = self.config
        common: dict[str, Any] = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        return OverlappingPatches(c.in_channels, c.features, c.patch_size, c.stride, **common)

    def shared(self, x: jax.Array) -> Any:
        norm: Any = self.shared_norm
        return tuple(jnp.asarray(part[...], jnp.float32) for part in (norm.scale, norm.bias))


VARIANTS: dict[str, dict[str, Any]] = {
    "rsmamba_nano_32": {
        "num_classes": 1000,
        "image_size": 32,
        "patch_size": 8,
        "stride": 4,
        "features": 64,
        "depth": 4,
        "num_heads": 4,
    },
    "rsmamba_small": {"depth": 16},
    "rsmamba_base": {},
    "rsmamba_large": {"features": 256, "depth": 36, "num_heads": 8},
    "rsmamba_huge": {"features": 320, "depth": 48, "num_heads": 10},
}

# Of the authors' code, with the heads of RESISC45.
PARAMETERS = {
    "rsmamba_small": 4_359_789,
    "rsmamba_base": 6_385_773,
    "rsmamba_large": 16_252_717,
    "rsmamba_huge": 33_060_845,
}

_LAYER, _MIXER = "backbone.layers.{i}", "blocks.{i}.mixer.inner.inner"
RULES = {
    "rsmamba": Naming(
        [
            ("backbone.patch_embed.projection", "patch_embed.conv"),
            ("backbone.pos_embed", "position.table", Rearrange("1 (h w) d -> h w d")),
            ("backbone.pre_norm", "shared_norm"),
            (f"{_LAYER}.dt_proj.bias", f"{_MIXER}.dt_bias"),
            *(
                (f"{_LAYER}.{name}", f"{_MIXER}.{name}")
                for name in ("in_proj", "x_proj", "dt_proj", "out_proj", "A_log", "D")
            ),
            (f"{_LAYER}.conv1d", f"{_MIXER}.conv"),
            ("backbone.gate_layers.{i}.0", "blocks.{i}.mixer.inner.gate"),
            ("backbone.ln1", "norm"),
            ("backbone.ln2", "pool_norm"),
            ("head.fc", "head"),
        ],
        tables=("position.table",),
    )
}


register_family(
    "rsmamba",
    RSMamba,
    RSMambaConfig,
    VARIANTS,
    our_choice=("rsmamba_nano_32",),
    parameters=PARAMETERS,
    rules=RULES,
    paper=(38,),
)
