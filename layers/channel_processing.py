"""Channel processing: Understanding the Robustness in Vision Transformers (Zhou et al., ICML 2022, arXiv:2204.12451),
section 3.2.

The channels of a token mix in an MLP with a convolution inside, and each head weights its channels by their similarity
to the mean channel of the head, which groups channels as attention groups tokens:

    y = t sigmoid(softmax_n(W x)^T mean_c(softmax_n(x))) * LN(mlp(x))        softmaxes over tokens, c in a head
    mlp(x) = W2 (h + g * depthwise(BN(gelu(depthwise(h)))))                  h = W1 x
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from layers.depthwise import DepthwiseConv
from layers.drop import Dropout, LayerScale
from layers.initializers import ones, truncated_normal, variance_scaling
from layers.linear import Linear
from layers.mixer import Mixer
from layers.mlp import gelu
from layers.norm import BatchNorm, create_norm
from layers.tokens import Tokens


class ChannelProcessing(Mixer):
    """An MLP whose output channels are weighted by their similarity to the mean channel, for a block's MLP.

    Parameters: ``query``, ``up``, ``down`` (linear), ``first``, ``second`` (depth-wise convolutions), ``batch_norm``,
    ``inside`` (scale g), ``norm``, ``temperature`` (heads,).
    """

    layouts = ("grid",)
    honors: frozenset[str] = frozenset()
    refusals: ClassVar[Mapping[str, str]] = {"mask": "its batch norm counts all tokens: leave padding out"}
    undecayed = ("temperature",)

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        num_heads: int,
        use_bias: bool = True,
        dropout: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        hidden: hidden features of the MLP.
        num_heads: number of groups of channels, each with its own mean channel and temperature.
        use_bias: bias of W.
        dropout: dropout rate inside and after the MLP.
        """
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        init, conv = truncated_normal(0.02), variance_scaling(2.0, "fan_in", "normal")
        self.temperature = nnx.Param(ones(None, (num_heads,), param_dtype))
        self.query = Linear(features, features, use_bias=use_bias, kernel_init=init, **common)
        self.up, self.down = (
            Linear(*sizes, kernel_init=init, **common) for sizes in ((features, hidden), (hidden, features))
        )
        self.first, self.second = (DepthwiseConv(hidden, 3, kernel_init=conv, **common) for _ in range(2))
        self.batch_norm = BatchNorm(hidden, **common)
        self.inside = LayerScale(hidden, 1.0, param_dtype=param_dtype, rngs=rngs)
        self.norm = create_norm("layer", features, epsilon=1e-6, **common)
        self.dropout = Dropout(dropout, rngs=rngs) if dropout else None

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        batch, rows, columns, features = x.shape
        h = self._dropped(self.up(x))
        h = h + self._dropped(self.inside(self.second(self.batch_norm(gelu(self.first(h))))))
        value = self.norm(self._dropped(self.down(h)))
        heads = len(self.temperature)
        shape = batch, rows * columns, heads, features // heads
        q, k = (jax.nn.softmax(a.reshape(shape).astype(jnp.float32), axis=1) for a in (self.query(x), x))
        alike = jnp.einsum("bnhc,bnh->bhc", q, k.mean(-1), precision="highest")
        weights = self.temperature[...].astype(jnp.float32)[:, None] * jax.nn.sigmoid(alike)
        return value * weights.reshape(batch, 1, 1, features).astype(value.dtype)

    def _dropped(self, x: jax.Array) -> jax.Array:
        return x if self.dropout is None else self.dropout(x)
