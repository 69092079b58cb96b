"""LION: Linear Attention for Efficient Bidirectional Sequence Modeling (Afzal et al., 2025, arXiv:2502.16249), sections
3 and 4.

    y_i = sum_j w_ij v_j / sum_j w_ij        w_ij = phi(q_i) . phi(k_j) d_ij / sqrt(head_dim)

    LION-LIT    d_ij = 1                                             phi(x) = elu(x) + 1
    LION-D      d_ij = a^|i - j|,  a = sigmoid(b) of each head       phi(x) = (silu(x) + 1/2) / |silu(x) + 1/2|
    LION-S      d_ij = a_j ... a_{i-1} for j < i,  a_{i+1} ... a_j for j > i,  a = 1 - sigmoid(W x + b); phi as above

Each direction is one linear recurrence, from its end of the sequence. The one of LION-S yields a_i d_ij; the factor a_i
is common to the whole row and is divided out. In the natural order of an image, d is the mean over two serpentine scans
with their own decays: one along the rows, alternately to the right and to the left, and one along the columns,
alternately down and up.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.attention.projected import HeadOptions, ProjectedAttention, of_projections
from layers.broadcast import widened
from layers.feature_maps import create_feature_map
from layers.initializers import normal
from layers.linear import Linear
from layers.linear_attention.memory import sums, with_ones
from layers.mixer import register_mixer, without_padding
from layers.tokens import Tokens
from pallas_kernels import linear_attention

LEAST_DECAY = -69.0
"""Smallest log decay: its exponential is still a normal float32."""


class LionOptions(HeadOptions, total=False):
    """Options of :class:`LionAttention` that its subclass passes on."""

    epsilon: float


def _decays(features: int, decay: str, options: HeadOptions) -> tuple[nnx.Param | None, Linear | None]:
    """The rate of each head if decay is "fixed", and the layer that computes it from a token if "selective"."""
    made, heads = of_projections(options), options["num_heads"]
    if decay == "fixed":
        return nnx.Param(normal(1.0)(made["rngs"].params(), (heads,), made["param_dtype"])), None
    return None, Linear(features, heads, **made) if decay == "selective" else None


@register_mixer("lion")
class LionAttention(ProjectedAttention):
    """Bidirectional linear attention whose weights decay with distance.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), with decay "fixed" ``rates`` (heads,), with "selective"
    ``decay`` (linear). As in the authors' code, prefix tokens of a grid, such as a class token, have a = 1 if the decay
    is selective, and the decay of all other tokens if it is fixed.
    """

    paper = (130,)
    honors = frozenset({"mask", "segment_ids"})
    weighs_values = True

    def __init__(
        self,
        features: int,
        *,
        decay: Literal["none", "fixed", "selective"] = "selective",
        epsilon: float = 1e-6,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          decay: "none" is LION-LIT, "fixed" LION-D, "selective" LION-S.
          epsilon: added to the sum of the weights.
          options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, or an unknown decay.
        """
        if decay not in ("none", "fixed", "selective"):
            raise ValueError(f"LionAttention: decay is none, fixed or selective; got {decay!r}")
        super().__init__(features, **options)
        feature_map = "elu+1" if decay == "none" else "silu+0.5"
        self.feature_map = create_feature_map(feature_map, self.head_dim, rngs=options["rngs"])
        self.rates, self.decay = _decays(features, decay, options)
        self.epsilon = epsilon

    @property
    def complexity(self) -> float:
        return 1.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        q, k = self.feature_map(q), self.feature_map(k)
        decays = jnp.arange(x.shape[1]) >= tokens.prefix(x.shape[1])
        return self._mean(self._read(q, k, v, self._log_decay(self.rates, self.decay, x, decays), tokens), v)

    def _log_decay(
        self, rates: nnx.Param | None, decay: Linear | None, x: jax.Array, decays: jax.Array
    ) -> jax.Array | None:
        """log a, (heads,) or (batch, length, heads), 0 where ``decays`` (length,) is False; None for no decay."""
        if rates is not None:
            return jnp.maximum(jax.nn.log_sigmoid(widened(rates[...])), LEAST_DECAY)
        if decay is None:
            return None
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.where(decays[:, None], jnp.maximum(jax.nn.log_sigmoid(-decay(x).astype(wide)), LEAST_DECAY), 0)

    def _read(self, q: jax.Array, k: jax.Array, v: jax.Array, decay: jax.Array | None, tokens: Tokens) -> jax.Array:
        """Sums of weighted values and, last, of weights (batch, length, heads, head_dim + 1), float32."""
        if decay is not None and decay.ndim == 3:
            if tokens.mask is not None:
                decay = jnp.where(tokens.mask[..., None], decay, 0)
            k = (k * jnp.exp(decay)[..., None]).astype(k.dtype)
        k = without_padding(k, None if tokens.mask is None else tokens.mask[..., None])
        values = with_ones(v.astype(jnp.promote_types(v.dtype, jnp.float32)))
        y = linear_attention(q, k, values, decay=decay, causal=False, starts=tokens.starts())
        return y if decay is None or decay.ndim == 1 else y * jnp.exp(-decay)[..., None]

    def _mean(self, y: jax.Array, v: jax.Array) -> jax.Array:
        value, weight = sums(y)
        return (value / (weight + self.epsilon)).astype(v.dtype)


@register_mixer("lion_natural")
class NaturalLionAttention(LionAttention):
    """LION on images: distances are measured along two serpentine scans, by rows and by columns.

    Parameters: those of :class:`LionAttention`, and ``column_rates`` or ``column_decay`` of the scan along the columns.
    """

    layouts = ("grid", "image")
    honors = frozenset({"mask"})

    def __init__(
        self, features: int, *, decay: Literal["fixed", "selective"] = "selective", **options: Unpack[LionOptions]
    ):
        """Args: as in :class:`LionAttention`.

        Raises:
          ValueError: features not divisible by num_heads, or another decay.
        """
        if decay not in ("fixed", "selective"):
            raise ValueError(f"NaturalLionAttention: decay is fixed or selective; got {decay!r}")
        super().__init__(features, decay=decay, **options)
        self.column_rates, self.column_decay = _decays(features, decay, options)

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        (rows, columns), prefix = tokens.image(x.shape[1])
        q, k = self.feature_map(q), self.feature_map(k)
        places = np.arange(rows * columns).reshape(rows, columns)
        curves = ((places, self.rates, self.decay), (places.T, self.column_rates, self.column_decay))
        found: Any = 0
        for grid, rates, decay in curves:
            turned = np.where(np.arange(len(grid))[:, None] % 2, grid[:, ::-1], grid).reshape(-1)
            order = np.concatenate([np.arange(prefix), prefix + turned])
            along = tokens.without("segment_ids").replace(mask=None if tokens.mask is None else tokens.mask[:, order])
            log = self._log_decay(rates, decay, x[:, order], jnp.arange(x.shape[1]) >= prefix)
            y = self._read(q[:, order], k[:, order], v[:, order], log, along)
            found = found + y[:, np.argsort(order)] / 2
        return self._mean(found, v)
