"""Subspace attention: ULSAM, Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural Networks
(Saini et al., WACV 2020, arXiv:2006.15102), one attention map for each group of channels.

    s = softmax over all positions of relu(N(w . maxpool3x3(relu(N(a x + b))) + c));    y = x + s x

for the channels x of each of g groups: a, b and the first batch norm N are per channel, w sums the channels of the
group, c and the second N are per group.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import broadcast
from layers.initializers import create_initializer, variance_scaling, zeros
from layers.module import Module
from layers.norm import BatchNorm
from layers.pool import max_pool


class SubspaceAttention(Module):
    """Multiplies each group of channels by 1 + its attention map; 5 * features + 3 * groups parameters.

    Parameters: ``scale``, ``offset`` (features,), ``norm``, ``weight`` (features,), ``shift`` (groups,), ``map_norm``.
    """

    def __init__(
        self,
        features: int,
        groups: int = 4,
        *,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          groups: number of subspaces, each with its own attention map.

        Raises:
          ValueError: groups that do not divide the features.
        """
        if features % groups:
            raise ValueError(f"{features} features can't be split into {groups} equal groups")
        # PyTorch's initial values of convolutions, with a fan-in of one channel and of one group.
        one, many = (variance_scaling(count / 3, "fan_in", "uniform") for count in (features, groups))
        self.scale = nnx.Param(self._drawn(one, features, param_dtype, rngs))
        self.offset = nnx.Param(zeros(rngs.params(), (features,), param_dtype))
        self.weight = nnx.Param(self._drawn(many, features, param_dtype, rngs))
        self.shift = nnx.Param(zeros(rngs.params(), (groups,), param_dtype))
        common: dict[str, Any] = {"momentum": 0.1, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm, self.map_norm = BatchNorm(features, **common), BatchNorm(groups, **common)
        self.groups = groups

    @staticmethod
    def _drawn(init: Any, features: int, dtype: Any, rngs: nnx.Rngs) -> jax.Array:
        return create_initializer(init)(rngs.params(), (features, 1), dtype).reshape(features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, features) to the same shape; attention maps are float32."""
        h = x * broadcast(self.scale[...], x.shape, x.dtype) + broadcast(self.offset[...], x.shape, x.dtype)
        h = max_pool(jax.nn.relu(self.norm(h)), 3, strides=1, padding=1)
        h = (h * broadcast(self.weight[...], h.shape, h.dtype)).reshape(*h.shape[:3], self.groups, -1)
        h = h.astype(jnp.promote_types(h.dtype, jnp.float32)).sum(-1) + self.shift[...].astype(jnp.float32)
        kept = jax.nn.softmax(jax.nn.relu(self.map_norm(h)), axis=(1, 2))
        return x * (1 + jnp.repeat(kept, x.shape[-1] // self.groups, axis=-1)).astype(x.dtype)
