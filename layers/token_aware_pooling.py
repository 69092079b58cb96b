"""Token-aware average pooling: Robustifying Token Attention for Vision Transformers (Guo et al., ICCV 2023,
arXiv:2303.11126), section 3.2.

    y_i = inner(norm(sum_s w_is x^s))_i      x^0 = x; x^s: means of 3x3 tokens with dilation s
    w_i = softmax_s(conv(BN(conv(x)))_i)     3x3 convolutions to as many numbers as there are scales

Each token chooses the size of the neighborhood that it represents when others attend to it. Positions beyond the map
count as zeros in the means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.combinators import bidirectional, on_grid
from layers.linear import Conv
from layers.mixer import Mixer, MixerSpec, Place, register_mixer, without_padding
from layers.norm import BatchNorm, Norm, create_norm
from layers.tokens import Tokens


@register_mixer("token_aware_pooling")
class TokenAwarePooling(Mixer):
    """A mixer of maps whose tokens are first averaged over neighborhoods of learned, token-dependent sizes.

    Masked tokens count as zeros, like positions beyond the map, and are left out of the statistics of the batch norm.
    Parameters: ``first``, ``second`` (convolutions without bias), ``batch_norm``, ``inner``, and ``norm`` if given.
    """

    layouts = ("grid",)
    paper = (29,)

    def __init__(
        self,
        features: int,
        *,
        scales: int = 4,
        norm: Norm | None = None,
        norm_epsilon: float = 1e-6,
        inner: MixerSpec = "attention",
        place: Place | None = None,
        rngs: nnx.Rngs,
    ):
        """Args:
          scales: number of neighborhood sizes, of which the first is the token itself.
          norm: norm of the pooled tokens; None for none.
          norm_epsilon: epsilon of the norm.
          inner: the mixer of the pooled tokens.

        Raises:
          ValueError: ``scales`` below 1.
        """
        if scales < 1:
            raise ValueError(f"scales must be at least 1, that of the token itself; got {scales}")
        place = Place() if place is None else place
        made: dict[str, Any] = {**place.dtypes, "rngs": rngs}
        self.inner = on_grid(bidirectional(inner, features, place=place, rngs=rngs), features, rngs=rngs)
        self.first = Conv(features, scales, (3, 3), padding=1, use_bias=False, **made)
        self.batch_norm = BatchNorm(scales, **made)
        self.second = Conv(scales, scales, (3, 3), padding=1, use_bias=False, **made)
        self.norm = None if norm is None else create_norm(norm, features, epsilon=norm_epsilon, **made)
        self.scales = scales

    @property
    def honors(self) -> frozenset[str]:  # type: ignore[override]
        return self.inner.honors - {"segment_ids"}

    @property
    def refusals(self) -> Mapping[str, str]:  # type: ignore[override]
        return {**self.inner.refusals, "segment_ids": "its means are over all neighbors"}

    @property
    def complexity(self) -> float:
        return self.inner.complexity

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        x = without_padding(x, tokens.mask)
        y = self.pooled(x, self.weights(x, tokens.mask))
        return self.inner(y if self.norm is None else self.norm(y), tokens)

    def weights(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Float32 (batch, height, width, scales): each token's weights of the neighborhood sizes."""
        h = self.batch_norm(self.first(x), mask=None if mask is None else mask[..., None])
        return jax.nn.softmax(self.second(without_padding(h, mask)).astype(jnp.float32))

    def pooled(self, x: jax.Array, weights: jax.Array) -> jax.Array:
        """The weighted sum of neighborhood means, (batch, height, width, features), by :meth:`weights`."""
        y = x * weights[..., :1].astype(x.dtype)
        for scale in range(1, self.scales):
            y = y + _means(x, scale) * weights[..., scale : scale + 1].astype(x.dtype)
        return y


def _means(x: jax.Array, apart: int) -> jax.Array:
    """Means of 3x3 tokens, ``apart`` from each other, around each token of a map, with zeros beyond it."""
    for axis in (1, 2):
        sides = [(apart, apart) if axis == number else (0, 0) for number in range(x.ndim)]
        padded, size = jnp.pad(x, sides), x.shape[axis]
        x = sum(
            (jax.lax.slice_in_dim(padded, i * apart, i * apart + size, axis=axis) for i in (1, 2)),
            jax.lax.slice_in_dim(padded, 0, size, axis=axis),
        )
    return x / 9
