"""DependencyViT: Visual Dependency Transformers: Dependency Tree Emerges from Reversed Attention (Ding et al., CVPR
2023, arXiv:2304.03282).

    image -> patches -> linear -> + positions -> blocks -> norm -> times m -> average pool -> linear
    block: x = x + s1 reversed(norm(x)); x = x + s2 mlp(norm(x))        (:mod:`layers.attention.reversed`)

Each token sends to the tokens that it attends to; m, the strength of its messages, is a product over the layers. Its
parent in a tree is the token to which it sends most ("attention" of :func:`zoo.attention_maps`). The lite models drop
the tokens with the smallest m after layers 2, 5, 8 and 11: each time 16 % of the initial number.

The authors' code is not published. Sizes, biases, the initial scale of 1e-6, and the choice of dropped tokens by m are
those of a port for timm (F. Guan), which was not trained: parameter counts and accuracies of the paper were not found.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from layers.mixer import MixerSpec, Place
from layers.reduction import Extent, ReductionSpec, TokenReduction
from layers.tokens import PER_TOKEN, Tokens
from zoo.backbones.isotropic import Isotropic, IsotropicConfig
from zoo.naming import Naming, Rearrange, Split
from zoo.registry import register_family


@dataclasses.dataclass(frozen=True)
class DependencyViTConfig(IsotropicConfig):
    """Hyper-parameters of DependencyViT.

    Attributes:
      prune_after: blocks after which tokens are dropped; ``reductions`` replaces it.
      prune_ratio: tokens dropped each time / initial tokens.
    """

    num_heads: int = 12
    qkv_bias: bool = False
    layer_scale: float | None = 1e-6
    prune_after: tuple[int, ...] = ()
    prune_ratio: float = 0.16
    class_token: bool = False
    pool: Any = "average"


class Loudest(TokenReduction):
    """Keeps the tokens with the largest m, in their order."""

    honors = frozenset(PER_TOKEN)
    shares: ClassVar[bool] = True

    def __init__(self, features: int, *, extent: Extent, keep: float, prefix: int = 0, rngs: nnx.Rngs, **_: Any):
        """Makes the reduction.

        Args:
          keep: fraction of the tokens that is kept; their number is rounded down.
        """
        self.keep = keep

    def extent_after(self, extent: Extent) -> int:
        return math.floor(self.keep * (extent if isinstance(extent, int) else extent[0] * extent[1]))

    def reduce(self, x: jax.Array, tokens: Tokens, /, *shared: Any) -> Any:
        message, length = shared[0], x.shape[1]
        ranked = message if tokens.mask is None else jnp.where(tokens.mask, message, -1)
        index = jnp.sort(jax.lax.top_k(jax.lax.stop_gradient(ranked), self.extent_after(length))[1], axis=1)

        def take(a: jax.Array) -> jax.Array:
            a = jnp.broadcast_to(a, (x.shape[0], *a.shape[1:]))
            return jnp.take_along_axis(a, index.reshape(*index.shape, *[1] * (a.ndim - 2)), axis=1)

        return take(x), tokens.off_grid(length).rearranged(take), take(message)


class DependencyViT(Isotropic):
    """DependencyViT; names as in :class:`Isotropic`."""

    config: DependencyViTConfig

    def own_mixer(self, place: Place) -> MixerSpec:
        return {"name": "reversed_attention", "use_bias": self.config.qkv_bias, "out_bias": True, "cumulative": True}

    def reduction_spec(self, index: int) -> ReductionSpec | None:
        c = self.config
        if c.reductions is not None or index not in c.prune_after:
            return super().reduction_spec(index)
        before = sorted(c.prune_after).index(index) * c.prune_ratio
        keep = (1 - before - c.prune_ratio) / (1 - before)
        return lambda features, **options: Loudest(features, keep=keep, **options)

    def shared(self, x: jax.Array) -> Any:
        shape = x.shape[:2] if x.ndim == 3 else (x.shape[0], x.shape[1] * x.shape[2])
        return jnp.ones(shape, jnp.float32)

    def pooled(self, images: jax.Array) -> jax.Array:
        if self.takes_grid:
            return super().pooled(images)
        x, tokens, _ = self._embed(images)
        (x, _), _, message = self.blocks.through(x, tokens, shared=self.shared(x))
        return (self._normed(x) * message[..., None].astype(x.dtype)).mean(1)


_LITE = {"prune_after": (1, 4, 7, 10)}
VARIANTS: dict[str, dict[str, Any]] = {
    "dependencyvit_nano_patch4_32": {
        "image_size": 32,
        "patch_size": 4,
        "features": 64,
        "depth": 6,
        "num_heads": 4,
        "mlp_ratio": 2.0,
        "layer_scale": 0.1,
    },
    "dependencyvit_tiny_patch16_224": {"features": 192},
    "dependencyvit_small_patch16_224": {"features": 384},
    "dependencyvit_lite_tiny_patch16_224": {"features": 192} | _LITE,
    "dependencyvit_lite_small_patch16_224": {"features": 384} | _LITE,
}

_MIXER = "blocks.{i}.mixer"
RULES = {
    "timm": Naming(
        [
            ("patch_embed.proj", "patch_embed"),
            ("pos_embed", "position.table", Rearrange("1 (h w) d -> h w d")),
            ("blocks.{i}.norm1", "blocks.{i}.mixer_norm"),
            ("blocks.{i}.attn.qkv", tuple(f"{_MIXER}.{part}" for part in ("query", "key", "value")), Split()),
            ("blocks.{i}.attn.head_selector", f"{_MIXER}.head_choice"),
            ("blocks.{i}.attn.message_controller.fc1", f"{_MIXER}.message_up"),
            ("blocks.{i}.attn.message_controller.fc2", f"{_MIXER}.message_down"),
            ("blocks.{i}.attn.proj", f"{_MIXER}.out"),
            ("blocks.{i}.ls1.gamma", "blocks.{i}.mixer_scale.scale"),
            ("blocks.{i}.norm2", "blocks.{i}.channel_norm"),
            ("blocks.{i}.mlp.fc1", "blocks.{i}.channel.up"),
            ("blocks.{i}.mlp.fc2", "blocks.{i}.channel.down"),
            ("blocks.{i}.ls2.gamma", "blocks.{i}.channel_scale.scale"),
            ("norm", "norm"),
            ("head", "head"),
        ],
        tables=("position.table",),
    )
}

register_family(
    "dependencyvit",
    DependencyViT,
    DependencyViTConfig,
    VARIANTS,
    our_choice=tuple(VARIANTS),
    rules=RULES,
    paper=(13,),
)
