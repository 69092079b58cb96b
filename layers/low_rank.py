"""Low-rank projections, which compute gates and decays of recurrent mixers (GLA, Yang et al., 2023, arXiv:2312.06635,
eq. 4).

y = W_up f(W_down x) + b
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import InitializerSpec, lecun_normal, zeros
from layers.linear import Linear
from layers.module import Module


class LowRank(Module):
    """Two linear layers with ``rank`` features between them; parameters ``down``, without bias, and ``up``."""

    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {"up.kernel": (None, "tensor")}

    def __init__(
        self,
        features: int,
        rank: int,
        out: int,
        *,
        activation: Callable[[jax.Array], jax.Array] | None = None,
        use_bias: bool = True,
        kernel_init: InitializerSpec = lecun_normal,
        down_init: InitializerSpec | None = None,
        bias_init: InitializerSpec = zeros,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        rank: features between the layers.
        out: features of the result.
        activation: f; None for none.
        use_bias: bias of ``up``.
        kernel_init, down_init: initializer of both kernels, and of ``down`` if it differs.
        bias_init: initializer of the bias of ``up``.
        """
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.down = Linear(features, rank, use_bias=False, kernel_init=down_init or kernel_init, **common)
        self.up = Linear(rank, out, use_bias=use_bias, kernel_init=kernel_init, bias_init=bias_init, **common)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., features) to (..., out)."""
        hidden = self.down(x)
        return self.up(hidden if self.activation is None else self.activation(hidden))
