"""Perceiver IO for images (Jaegle et al., ICLR 2022, arXiv:2107.14795), section 4.5 and appendix A.

    pixels, or features of them, concatenated with positions (n, channels)
      latents (512, 1024) = cross(latents, pixels)
      8 x the same 6 x [z = z + Attention(norm(z));  z = z + MLP(norm(z))]
      classes = W cross(query, latents)                              one query

The parts are those of the text model (:mod:`zoo.language.perceiver`). There are three stems, of which two know nothing
about images except the position of each pixel:

    learned    256 features of each pixel, and a learned position of 256, projected                 50,176 pixels
    fourier    the pixel, and 2 coordinates in [-1, 1], and sin(pi f c), cos(pi f c) of each c, for 64 frequencies f
               that are evenly spaced from 1 to half of the resolution, 224                         50,176 pixels
    conv       a 7x7 convolution of 64 features and stride 2, batch norm, ReLU, 3x3 max-pooling of stride 2, and the
               coordinates, sines and cosines above for resolution 56                               3,025 positions

``depth`` counts blocks with parameters of their own, which are run ``rounds`` times. Latents have no position in the
image: ``features`` returns (batch, latents, features), and a mixer that needs a grid is refused.
``perceiver_image_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.broadcast import broadcast
from layers.extra_tokens import repeated
from layers.initializers import normal
from layers.linear import Conv, Linear
from layers.mixer import Place
from layers.module import Module
from layers.patch import ConvNorm
from layers.pool import max_pool
from layers.position import LearnedPositions
from layers.reduction import TokenReduction
from layers.stack import Stack
from layers.tokens import Tokens
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.language.perceiver import Asked, Cross, block_names, cross_names
from zoo.naming import Naming, Rearrange
from zoo.registry import Release, one_of, register_family


@dataclasses.dataclass(frozen=True)
class PerceiverImageConfig(IsotropicConfig):
    """Hyper-parameters of Perceiver IO for images; ``features``, ``depth`` and ``num_heads`` are those of the latents.

    Attributes:
      stem: "learned", "fourier" or "conv".
      stem_features: of pixels and of their learned positions, or of the convolution.
      bands, resolution: number of frequencies of a coordinate, and twice the highest frequency.
      latents: number of latents.
      rounds: how many times all blocks are run.
      cross_heads: heads of the attention that reads pixels; None is num_heads. The attention of the class query has
        one.
    """

    features: int = 1024
    depth: int = 6
    num_heads: int = 8
    mlp_ratio: float = 1.0
    norm_epsilon: float = 1e-5
    patch_size: int = 1
    mlp: Literal["gelu", "gelu_tanh"] = "gelu"
    class_token: bool = False
    position: None = None
    pool: Literal["average"] = "average"
    final_norm: bool = False
    antialias: bool = False
    stem: Literal["learned", "fourier", "conv"] = "fourier"
    stem_features: int = 64
    bands: int = 64
    resolution: int = 224
    latents: int = 512
    rounds: int = 8
    cross_heads: int | None = 1


class PerceiverStem(Module):
    """Pixels or features of them, concatenated with their positions.

    Parameters: of "learned" ``conv``, ``position`` and ``projection``, of "conv" ``conv`` (:class:`layers.ConvNorm`).
    """

    def __init__(self, c: PerceiverImageConfig, *, rngs: nnx.Rngs):
        """Raises ValueError for an unknown stem."""
        if c.stem not in ("learned", "fourier", "conv"):
            raise ValueError(f'stem is "learned", "fourier" or "conv", got {c.stem!r}')
        common: dict[str, Any] = {"dtype": c.dtype, "param_dtype": c.param_dtype, "rngs": rngs}
        self.stem, self.bands, self.resolution = c.stem, c.bands, c.resolution
        width, grid, learned = c.stem_features, (c.image_size, c.image_size), c.stem == "learned"
        conv: Any = None
        if learned:
            conv = Conv(c.in_channels, width, (1, 1), **common)
        elif c.stem == "conv":
            options: dict[str, Any] = {"kernel_size": 7, "strides": 2, "use_bias": False, "activation": nnx.relu}
            conv = ConvNorm(c.in_channels, width, **options, **common)
        self.conv = conv
        options = {"antialias": c.antialias, "param_dtype": c.param_dtype, "rngs": rngs}
        self.position = LearnedPositions(grid, width, **options) if learned else None
        self.projection = Linear(width, width, **common) if learned else None
        places = width if learned else 4 * c.bands + 2
        self.features = places + (c.in_channels if c.stem == "fourier" else width)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output for an image of this size."""
        if self.stem != "conv":
            return height, width
        rows, columns = (((side + 1) // 2 - 3) // 2 + 1 for side in (height, width))
        return rows, columns

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, rows, columns, features)."""
        x = images if self.conv is None else self.conv(images)
        if self.stem == "conv":
            x = max_pool(x, 3, strides=2)
        rows, columns = x.shape[1:3]
        if self.position is not None and self.projection is not None:
            places = self.projection(self.position((rows, columns)))
        else:
            places = jnp.asarray(fourier_features((rows, columns), self.bands, self.resolution))
        return jnp.concatenate([x, broadcast(places, (*x.shape[:3], places.shape[-1]), x.dtype)], -1)


def fourier_features(grid: tuple[int, int], bands: int, resolution: int) -> np.ndarray:
    """Coordinates of the cells of a grid in [-1, 1], then sines, then cosines of their multiples: float32 (rows,
    columns, 4 bands + 2).
    """
    axes = (np.linspace(-1, 1, side) for side in grid)
    cells = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    turns = np.pi * (cells[..., None] * np.linspace(1, resolution / 2, bands)).reshape(*grid, -1)
    return np.concatenate([cells, np.sin(turns), np.cos(turns)], -1).astype(np.float32)


class PerceiverImage(Isotropic):
    """Perceiver IO on images.

    Names: ``patch_embed`` (:class:`PerceiverStem`), ``latents``, ``encoder`` (:class:`zoo.language.perceiver.Cross`),
    ``blocks.N``, ``decoder`` (:class:`zoo.language.perceiver.Asked`), ``head``.
    """

    stem = (*Isotropic.stem, "latents", "encoder")
    undecayed = (*Isotropic.undecayed, "latents")
    config: PerceiverImageConfig

    def __init__(self, config: PerceiverImageConfig, *, rngs: nnx.Rngs):
        """As :class:`Isotropic`.

        Raises:
          ValueError: a mixer that takes only grids, since latents have none, or an unknown stem.
        """
        super().__init__(config, rngs=rngs)
        if self.takes_grid:
            raise ValueError("the latents of a Perceiver have no grid: give a mixer that takes sequences")
        c, width = config, self.patch_embed.features
        self.latents = nnx.Param(normal(0.02)(rngs.params(), (c.latents, c.features), c.param_dtype))
        self.encoder = Cross(c, c.features, width, num_heads=c.cross_heads or c.num_heads, rngs=rngs)
        self.decoder = Asked(c, 1, c.features, num_heads=1, rngs=rngs)

    def make_stem(self, *, rngs: nnx.Rngs) -> Any:
        return PerceiverStem(self.config, rngs=rngs)

    def place(self, stage: int, index: int) -> Place:
        return dataclasses.replace(super().place(stage, index), grid=None)

    def make_stack(
        self, stage: int = 0, *, reductions: Mapping[int, TokenReduction] | None = None, rngs: nnx.Rngs
    ) -> Stack:
        """The blocks of all rounds: those of one round, repeated.

        Raises:
          ValueError: reductions, since all blocks have the same latents.
        """
        if reductions:
            raise ValueError("a Perceiver has as many latents in all blocks: leave reductions out")
        c = self.config
        return Stack([*super().make_stack(stage, rngs=rngs)] * c.rounds, remat=c.remat, scan=c.scan)

    def _embed(self, images: jax.Array, masked: jax.Array | None = None) -> tuple[jax.Array, Tokens, tuple[int, int]]:
        x, _, grid = super()._embed(images, masked)
        return self.encoder(repeated(self.latents[...], x.shape[0], x.dtype), x), Tokens(), grid

    def features(  # type: ignore[override]
        self, images: jax.Array, indices: Sequence[int] | None = None, *, norm: bool = False
    ) -> list[jax.Array]:
        """Latents (batch, latents, features) after some blocks, by default the last of each quarter of all rounds."""
        return super().features(images, indices, norm=norm)

    def pooled(self, images: jax.Array) -> jax.Array:
        """The output of the class query: (batch, features)."""
        return self.decoder(self._run(images)[0][0])[:, 0]


VARIANTS: dict[str, dict[str, Any]] = {
    "perceiver_image_learned": {"stem": "learned", "stem_features": 256},
    "perceiver_image_fourier": {},
    "perceiver_image_conv": {"stem": "conv", "resolution": 56},
    "perceiver_image_nano": {
        "image_size": 32, "features": 128, "depth": 2, "num_heads": 4, "bands": 8, "resolution": 32, "latents": 32,
        "rounds": 2,
    },
}  # fmt: skip

_MODEL, _DECODER = "perceiver", "perceiver.decoder.decoder"
_PIXELS = f"{_MODEL}.input_preprocessor"
RULES = {
    "transformers": Naming(
        [
            (f"{_PIXELS}.convnet_1x1", "patch_embed.conv"),
            (f"{_PIXELS}.convnet.conv", "patch_embed.conv.conv"),
            (f"{_PIXELS}.convnet.batchnorm", "patch_embed.conv.norm"),
            (f"{_PIXELS}.position_embeddings.position_embeddings", "patch_embed.position.table",
             Rearrange("(h w) d -> h w d", h="image_size")),
            (f"{_PIXELS}.positions_projection", "patch_embed.projection"),
            (f"{_MODEL}.embeddings.latents", "latents"),
            *cross_names(f"{_MODEL}.encoder.cross_attention", "encoder"),
            *block_names(f"{_MODEL}.encoder.self_attends.{{i}}", "blocks.{i}", "mixer", "mixer_norm"),
            (f"{_DECODER}.output_position_encodings.position_embeddings", "decoder.queries"),
            *cross_names(f"{_DECODER}.decoding_cross_attention", "decoder.cross"),
            (f"{_DECODER}.final_layer", "head"),
        ],
        tables=("patch_embed.position.table",),
    )
}  # fmt: skip


def _rounds(config: Mapping[str, Any]) -> Any:
    """The number of rounds. Raises ValueError for options that this family does not have."""
    one_of(config, "hidden_act", {"gelu": "gelu"})
    one_of(config, "use_query_residual", {True: "yes"})
    one_of(config, "cross_attention_shape_for_attention", {"kv": "kv"})
    return config.get("num_blocks")


DESCRIBED: dict[str, Any] = {
    "rounds": _rounds,
    "num_heads": lambda config: config.get("num_self_attention_heads"),
    "cross_heads": lambda config: config.get("num_cross_attention_heads"),
}

RELEASES = {
    f"perceiver_image_{stem}": {"deepmind": Release(f"hf://deepmind/vision-perceiver-{stem}", 1000)}
    for stem in ("learned", "fourier", "conv")
}

# Of transformers' models of the released sizes.
PARAMETERS = {
    "perceiver_image_learned": 62_255_848,
    "perceiver_image_fourier": 48_440_627,
    "perceiver_image_conv": 48_646_522,
}

register_family(
    "perceiver_image",
    PerceiverImage,
    PerceiverImageConfig,
    VARIANTS,
    our_choice=("perceiver_image_nano",),
    parameters=PARAMETERS,
    rules=RULES,
    releases=RELEASES,
    described=DESCRIBED,
)
