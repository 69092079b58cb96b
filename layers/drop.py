"""Dropout; stochastic depth and layer scale, factors of a residual branch; and channels of which the first are kept."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import broadcast
from layers.initializers import constant
from layers.module import Constant, Module
from primitives.dropping import kept


def next_key(stream: nnx.RngStream) -> jax.Array:
    """The next key of a stream, as ``stream()`` has it; for the reason in :class:`layers.module.Statistic`."""
    key = jax.random.fold_in(stream.key[...], stream.count[...])
    stream.count.set_value(stream.count[...] + 1)
    return key


class Dropping(Module):
    """What drops in training mode (``train()``) and returns its input in evaluation mode (``eval()``)."""

    def __init__(self, rngs: nnx.Rngs):
        self.deterministic = False
        self.rngs = rngs.dropout.fork()

    def keeps(self, probability: jax.Array | float, shape: tuple[int, ...]) -> jax.Array:
        """Bool of ``shape``, each True with ``probability``, another one for each call."""
        step = self.rngs.count[...]
        self.rngs.count.set_value(step + 1)
        return kept(self.rngs.key[...], step, probability, shape)


class Dropout(Dropping):
    """Sets each entry to 0 with probability ``rate`` and divides the others by 1 - rate.

    Dropout: A Simple Way to Prevent Neural Networks from Overfitting (Srivastava et al., JMLR 2014). Raises ValueError
    for a rate outside [0, 1).
    """

    def __init__(self, rate: float, *, rngs: nnx.Rngs):
        _check("dropout", rate)
        super().__init__(rngs)
        self.rate = rate

    def __call__(self, x: jax.Array) -> jax.Array:
        """Drops entries of ``x`` (...)."""
        if self.deterministic or not self.rate:
            return x
        return jnp.where(self.keeps(1 - self.rate, x.shape), x / (1 - self.rate), jnp.zeros_like(x))


class DropPath(Dropping):
    """Drops the whole residual branch of an example with probability ``rate`` and rescales the kept ones.

    Deep Networks with Stochastic Depth (Huang et al., 2016, arXiv:1603.09382), applied per example. The rate is a
    variable, so that the blocks of a stack, whose rates differ, remain one program under scan. Raises ValueError for a
    rate outside [0, 1).
    """

    def __init__(self, rate: float, *, rngs: nnx.Rngs):
        _check("drop path", rate)
        super().__init__(rngs)
        self.rate = Constant(constant(rate)(None, ()))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Drops examples of ``x`` (batch, ...)."""
        if self.deterministic:
            return x
        keep = 1.0 - self.rate[...]
        mask = self.keeps(keep, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(mask, x / keep.astype(x.dtype), jnp.zeros_like(x))


def _check(what: str, rate: float) -> None:
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{what} rate must lie in [0, 1), got {rate}")


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


class ChannelDrop(Dropping):
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
        super().__init__(rngs)
        self.kept, self.groups = tuple(kept), groups

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``x`` (batch, ..., channels) to the same shape."""
        if self.deterministic:
            return x
        each = jnp.arange(-(-self.groups // len(self.kept)) * len(self.kept)) % len(self.kept)
        counts = jnp.asarray(self.kept)[jax.random.permutation(next_key(self.rngs), each)[: self.groups]]
        counts = counts[jnp.arange(x.shape[0]) % self.groups]
        inside = jnp.arange(x.shape[-1]) < counts.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(inside, x, jnp.zeros_like(x))
