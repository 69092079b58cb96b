"""T2T-ViT: Tokens-to-Token ViT, Training Vision Transformers from Scratch on ImageNet (L. Yuan et al., 2021,
arXiv:2101.11986).

    image -> soft split 7 -> token block -> soft split 3 -> token block -> soft split 3 -> linear
          -> + fixed sinusoids, class token -> blocks -> norm -> class token -> linear

A soft split makes a token of each overlapping window of a map. A token block, with one head, makes them narrower:

    y = v + out(attention(q, k, v))     with q, k, v of norm(x)
    y = y + mlp(norm(y))

with softmax attention ("transformer", scores scaled by the width of x), or with attention by m positive random features
of the softmax kernel ("performer"; Choromanski et al., 2021, arXiv:2009.14794), whose projection W is sampled once,
stored in files, and not trained:

    attention = phi(q) (phi(k)^T v) / (phi(q) . sum phi(k))        phi(u) = exp(W u - |u|^2 / 2) / sqrt(m)

Top-1 accuracy on ImageNet-1k: 71.7, 75.2, 76.5, 81.5, 81.9, 82.3 (7 to 24); 81.7, 82.4, 82.6 (t_14, t_19, t_24).
Parameters are counted without the fixed tables. ``t2t_vit_nano`` is our choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.attention.linear import normalized_linear_attention
from layers.drop import Dropout
from layers.feature_maps import positive_random_logs, queries_over_largest
from layers.initializers import Orthogonal
from layers.linear import Linear
from layers.mlp import MLP
from layers.module import Module, Statistic
from layers.norm import create_norm
from layers.patch import soft_split, soft_split_grid
from layers.position import sinusoids
from pallas_kernels import attention
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Each, Naming, Rearrange, Split
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class T2TViTConfig(IsotropicConfig):
    """Hyper-parameters of T2T-ViT.

    Attributes:
      tokens: attention of the token blocks, "performer" or "transformer".
      token_features: width of the token blocks.
      token_dropout: dropout in the performer's token blocks.
      strides: of the three soft splits; their product replaces ``patch_size``.
    """

    tokens: Literal["performer", "transformer"] = "performer"
    token_features: int = 64
    token_dropout: float = 0.1
    strides: tuple[int, int, int] = (4, 2, 2)
    position: Any = None
    qkv_bias: bool = False
    norm_epsilon: float = 1e-5


class TokenBlock(Module):
    """A block with one head that maps tokens to fewer features.

    Parameters: ``norm``, ``query``, ``key``, ``value``, ``out``, ``mlp_norm``, ``mlp``; the performer's projection is
    the statistic ``projection``.
    """

    def __init__(self, features_in: int, config: T2TViTConfig, *, rngs: nnx.Rngs):
        width = config.token_features
        common = {"dtype": config.dtype, "param_dtype": config.param_dtype, "rngs": rngs}
        norms: dict[str, Any] = {**common, "epsilon": config.norm_epsilon}
        performer = config.tokens == "performer"
        self.norm = create_norm("layer", features_in, **norms)
        self.query, self.key, self.value = (Linear(features_in, width, use_bias=performer, **common) for _ in range(3))
        self.out = Linear(width, width, **common)
        self.mlp_norm = create_norm("layer", width, **norms)
        self.mlp = MLP(width, width, **common)
        self.scale, count = features_in**-0.5, width // 2
        drawn = Orthogonal(count**0.5)(rngs.params(), (count, width), jnp.float32) if performer else None
        self.projection = None if drawn is None else Statistic(drawn)
        self.dropout = Dropout(config.token_dropout, rngs=rngs) if performer and config.token_dropout else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, rows, columns, features_in) to (batch, rows, columns, features)."""
        batch, rows, columns, features = x.shape
        h = self.norm(x.reshape(batch, rows * columns, features))
        q, k, v = (linear(h)[:, :, None] for linear in (self.query, self.key, self.value))
        if self.projection is None:
            y = attention(q, k, v, scale=self.scale)
        else:
            asks, gives = (positive_random_logs(heads, self.projection[...]) for heads in (q, k))
            largest = jax.lax.stop_gradient(gives.max(1, keepdims=True))
            q, k = queries_over_largest(asks, largest), jnp.exp(gives - largest)
            y = normalized_linear_attention(q, k, v, causal=False, epsilon=1e-8)
        y = (v + self._dropped(self.out(y)))[:, :, 0]
        y = y + self._dropped(self.mlp(self.mlp_norm(y)))
        return y.reshape(batch, rows, columns, -1)

    def _dropped(self, x: jax.Array) -> jax.Array:
        return x if self.dropout is None else self.dropout(x)


class TokensToToken(Module):
    """The stem: three soft splits, a token block after each of the first two, and a linear layer.

    Parameters: ``attention1``, ``attention2``, ``project``.
    """

    def __init__(self, config: T2TViTConfig, *, rngs: nnx.Rngs):
        if config.tokens not in ("performer", "transformer"):
            raise ValueError(f'tokens is "performer" or "transformer", got {config.tokens!r}')
        # Size, stride and zeros around the map of each soft split.
        self.windows = tuple(zip((7, 3, 3), config.strides, (2, 1, 1), strict=True))
        features = 9 * config.token_features
        self.attention1 = TokenBlock(49 * config.in_channels, config, rngs=rngs)
        self.attention2 = TokenBlock(features, config, rngs=rngs)
        common = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        self.project = Linear(features, config.features, **common, rngs=rngs)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of an image."""
        for window in self.windows:
            height, width = soft_split_grid(height, width, *window)
        return height, width

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (batch, rows, columns, features)."""
        first, second, third = self.windows
        x = self.attention1(soft_split(images, *first))
        x = self.attention2(soft_split(x, *second))
        return self.project(soft_split(x, *third))


class SequencePositions(Module):
    """Fixed sinusoids of the positions of tokens in row-major order, after ``before`` prefix tokens.

    They are stored in files, as the statistic ``table`` (rows, columns, features); for another grid they are computed.
    """

    def __init__(self, grid: tuple[int, int], features: int, *, before: int):
        self.before, self.width = before, features
        self.table = Statistic(self._made(grid))

    def _made(self, grid: tuple[int, int]) -> np.ndarray:
        # A NumPy array, so that making a model compiles nothing.
        table = sinusoids(self.before + grid[0] * grid[1], self.width)[self.before :]
        return table.reshape(*grid, self.width)

    def __call__(self, grid: tuple[int, int]) -> jax.Array:
        """The table for ``grid``: (rows, columns, features)."""
        return self.resampled(self.table[...], grid)

    def resampled(self, table: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """The table of another grid."""
        return table if tuple(table.shape[:2]) == tuple(grid) else jnp.asarray(self._made(grid))


class T2TViT(Isotropic):
    """T2T-ViT; names as in :class:`Isotropic`, with :class:`TokensToToken` as ``patch_embed``."""

    def __init__(self, config: T2TViTConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        if self.prefix:
            self.prefix_position = nnx.data(Statistic(sinusoids(self.prefix, config.features)))

    def make_stem(self, *, rngs: nnx.Rngs) -> TokensToToken:
        return TokensToToken(self.config, rngs=rngs)

    def make_position(self, grid: tuple[int, int], *, rngs: nnx.Rngs) -> SequencePositions:
        return SequencePositions(grid, self.config.features, before=self.prefix)


_SMALL: dict[str, Any] = {"features": 256, "num_heads": 4, "mlp_ratio": 2.0}
_14: dict[str, Any] = {"features": 384, "depth": 14, "num_heads": 6, "mlp_ratio": 3.0}
_19: dict[str, Any] = {"features": 448, "depth": 19, "num_heads": 7, "mlp_ratio": 3.0}
_24: dict[str, Any] = {"features": 512, "depth": 24, "num_heads": 8, "mlp_ratio": 3.0}
_NANO: dict[str, Any] = {"image_size": 32, "strides": (2, 2, 1), "token_features": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "t2t_vit_nano": _NANO | {"features": 64, "depth": 6, "num_heads": 4, "mlp_ratio": 2.0},
    "t2t_vit_7": _SMALL | {"depth": 7},
    "t2t_vit_10": _SMALL | {"depth": 10},
    "t2t_vit_12": _SMALL | {"depth": 12},
    "t2t_vit_14": _14,
    "t2t_vit_19": _19,
    "t2t_vit_24": _24,
    "t2t_vit_t_14": _14 | {"tokens": "transformer"},
    "t2t_vit_t_19": _19 | {"tokens": "transformer"},
    "t2t_vit_t_24": _24 | {"tokens": "transformer"},
    "t2t_vit_14_resnext": _14 | {"num_heads": 32},
    "t2t_vit_14_wide": _14 | {"features": 768, "depth": 4, "num_heads": 12},
}

# Of the authors' code, less the fixed tables of positions and the projections of the performer.
PARAMETERS = {
    "t2t_vit_7": 4_255_694,
    "t2t_vit_10": 5_834_702,
    "t2t_vit_12": 6_887_374,
    "t2t_vit_14": 21_465_806,
    "t2t_vit_19": 39_085_070,
    "t2t_vit_24": 64_000_974,
    "t2t_vit_t_14": 21_465_422,
    "t2t_vit_t_19": 39_084_686,
    "t2t_vit_t_24": 64_000_590,
    "t2t_vit_14_resnext": 21_465_806,
    "t2t_vit_14_wide": 25_000_910,
}

_POSITIONS = Each((Rearrange("1 n d -> n d"), Rearrange("1 (h w) d -> h w d")))


def _rules(tokens: str) -> dict[str, Naming]:
    """The authors' names."""
    performer = tokens == "performer"
    rules: list[tuple[Any, ...]] = []
    for name in ("attention1", "attention2"):
        theirs, ours = f"tokens_to_token.{name}", f"patch_embed.{name}"
        inside = theirs if performer else f"{theirs}.attn"
        # The performer's fused layer has keys first.
        order = ("key", "query", "value") if performer else ("query", "key", "value")
        up, down = ("0", "2") if performer else ("fc1", "fc2")
        rules += [
            (f"{theirs}.w", f"{ours}.projection"),
            (f"{theirs}.norm1", f"{ours}.norm"),
            (f"{inside}.{'kqv' if performer else 'qkv'}", tuple(f"{ours}.{part}" for part in order), Split()),
            (f"{inside}.proj", f"{ours}.out"),
            (f"{theirs}.norm2", f"{ours}.mlp_norm"),
            (f"{theirs}.mlp.{up}", f"{ours}.mlp.up"),
            (f"{theirs}.mlp.{down}", f"{ours}.mlp.down"),
        ]
    mixer = tuple(f"blocks.{{i}}.mixer.{part}" for part in ("query", "key", "value"))
    rules += [
        ("tokens_to_token.project", "patch_embed.project"),
        ("cls_token", "class_token", Rearrange("1 n d -> n d")),
        ("pos_embed", ("prefix_position", "position.table"), Split(1), _POSITIONS),
        ("blocks.{i}.norm1", "blocks.{i}.mixer_norm"),
        ("blocks.{i}.attn.qkv", mixer, Split()),
        ("blocks.{i}.attn.proj", "blocks.{i}.mixer.out"),
        ("blocks.{i}.norm2", "blocks.{i}.channel_norm"),
        ("blocks.{i}.mlp.fc1", "blocks.{i}.channel.up"),
        ("blocks.{i}.mlp.fc2", "blocks.{i}.channel.down"),
        ("norm", "norm"),
        ("head", "head"),
    ]
    return {"t2t": Naming(rules, tables=("position.table",))}


for _kind in ("performer", "transformer"):
    register_family(
        "t2t_vit",
        T2TViT,
        T2TViTConfig,
        {name: options for name, options in VARIANTS.items() if options.get("tokens", "performer") == _kind},
        our_choice=("t2t_vit_nano",),
        parameters=PARAMETERS,
        rules=_rules(_kind),
        preprocess={"crop_fraction": 0.9},
        paper=(184,),
    )
