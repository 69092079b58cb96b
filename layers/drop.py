"""Stochastic depth and layer scale, factors of a residual branch; and channels of which only the first are kept."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import broadcast
from layers.initializers import constant
from layers.module import Constant, Module


class DropPath(Module):
    """Drops the whole residual branch of an example with probability ``rate`` and rescales the kept ones.

    Deep Networks with Stochastic Depth (Huang et al., 2016, arXiv:1603.09382), applied per example. The rate is a
    variable, so that the blocks of a stack, whose rates differ, remain one program under scan. Raises ValueError for a
    rate outside [0, 1).
    """

    def __init__(self, rate: float, *, rngs: nnx.Rngs):
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path rate must lie in [0, 1), got {rate}")
        self.rate = Constant(constant(rate)(None, ()))
        self.deterministic = False
        self.rngs = rngs.dropout.fork()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Drops examples of ``x`` (batch, ...)."""
        if self.deterministic:
            return x
        keep = 1.0 - self.rate[...]
        mask = jax.random.bernoulli(self.rngs(), keep, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(mask, x / keep.astype(x.dtype), jnp.zeros_like(x))


class LayerScale(Module):
    """Multiplies each feature of a residual branch by a learned factor that starts small.

    Going deeper with Image Transformers (Touvron et al., 2021, arXiv:2103.17239), eq. 4.
    """

    def __init__(self, features: int, initial: float, *, param_dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        """Args:
        initial: initial value of all factors.
        """
        del rngs  # unused: all layers have the same constructor arguments
        self.scale = nnx.Param(constant(initial)(None, (features,), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales ``x`` (..., features)."""
        return x * broadcast(self.scale[...], x.shape, x.dtype)


class ChannelDrop(Module):
    """Keeps the first c channels and sets the others to 0, with c drawn for each of several groups of a batch, so that
    one network trains the weights of networks of many widths. Outside training all channels are kept.

    Searching for Efficient Multi-Stage Vision Transformers (Liao et al., 2021, arXiv:2109.00642), section 3.3.
    """

    def __init__(self, kept: Sequence[int], groups: int, *, rngs: nnx.Rngs):
        """Args:
          kept: the values of c, drawn equally often.
          groups: number of draws in a batch; example i belongs to group i modulo ``groups``.

        Raises:
          ValueError: no value of c, or one below 1, or no group.
        """
        if not kept or min(kept) < 1 or groups < 1:
            raise ValueError(f"at least 1 channel and 1 group: got kept={tuple(kept)} and groups={groups}")
        self.kept, self.groups = tuple(kept), groups
        self.deterministic = False
        self.rngs = rngs.dropout.fork()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``x`` (batch, ..., channels) to the same shape."""
        if self.deterministic:
            return x
        each = jnp.arange(-(-self.groups // len(self.kept)) * len(self.kept)) % len(self.kept)
        drawn = jnp.asarray(self.kept)[jax.random.permutation(self.rngs(), each)[: self.groups]]
        counts = drawn[jnp.arange(x.shape[0]) % self.groups]
        inside = jnp.arange(x.shape[-1]) < counts.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(inside, x, jnp.zeros_like(x))
