"""Channel mixing: the two-layer MLP, its gated form, and forms with a convolution inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from layers.depthwise import DepthwiseConv
from layers.drop import Dropout
from layers.initializers import truncated_normal, variance_scaling, zeros
from layers.linear import Linear
from layers.mixer import Mixer, finite_padding, without_padding
from layers.module import Module
from layers.norm import GlobalResponseNorm, Norm, create_norm
from layers.tokens import Tokens
from primitives.exponential import (
    Later,
    activation,
    normal_cdf,
    normal_density,
    silu,
    slope_of_gated,
    value_and_gate,
)


@activation
def gelu(x: jax.Array) -> tuple[jax.Array, Later]:
    """The exact GELU, x Phi(x), of most released vision models (``jax.nn.gelu`` defaults to the tanh form)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    below = normal_cdf(wide)
    return (wide * below).astype(x.dtype), lambda: below + wide * normal_density(wide)


@activation
def gelu_tanh(x: jax.Array) -> tuple[jax.Array, Later]:
    """The tanh approximation of GELU, used by TensorFlow models and big_vision."""
    # (1 + tanh(y)) / 2 is sigmoid(2 y).
    value, gate = value_and_gate(x, math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))

    def slope() -> jax.Array:
        # Beyond 16, where the gate is 0 or 1, the square would overflow.
        inside = jnp.square(jnp.clip(x, -16, 16))
        return slope_of_gated(value, gate(), math.sqrt(8 / math.pi) * (1 + 3 * 0.044715 * inside))

    return value, slope


def unchanged(x: jax.Array) -> jax.Array:
    """``x``: no activation."""
    return x


# The kernels to the hidden features are split by columns, the one from them by rows: one all-reduce per MLP.
_SHARDING: dict[str, tuple[str | None, ...]] = {
    "gate.kernel": (None, "tensor"),
    "up.kernel": (None, "tensor"),
    "down.kernel": ("tensor", None),
}


class MLP(Module):
    """Linear, activation, linear: ``W2 f(W1 x)``; with ``norm``, ``W2 norm(f(W1 x))`` (Foundation Transformers,
    arXiv:2210.06423).
    """

    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = _SHARDING

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = gelu,
        norm: Norm | None = None,
        use_bias: bool = True,
        dropout: float = 0.0,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        hidden: hidden features.
        activation: f.
        norm: norm of the hidden features; None for none.
        use_bias: biases of both layers.
        dropout: dropout rate of the hidden features and of the output.
        """
        common = {
            "use_bias": use_bias,
            "kernel_init": kernel_init,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.up = Linear(features, hidden, **common)
        self.norm = (
            create_norm(norm, hidden, epsilon=1e-5, dtype=dtype, param_dtype=param_dtype, rngs=rngs) if norm else None
        )
        self.down = Linear(hidden, features, **common)
        self.activation = activation
        self.dropout = Dropout(dropout, rngs=rngs) if dropout else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``x`` (..., features) to the same shape."""
        x = self.activation(self.up(x))
        if self.dropout is not None:
            x = self.dropout(x)
        x = self.down(x if self.norm is None else self.norm(x))
        return x if self.dropout is None else self.dropout(x)


class GatedMLP(Module):
    """``W2 (f(W1 x) * V x)``: SwiGLU with ``f = silu``, GEGLU with ``f = gelu``; with ``norm``, ``W2 norm(f(W1 x) * V
    x)``.

    GLU Variants Improve Transformer (Shazeer, 2020, arXiv:2002.05202), eq. 6.
    """

    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = _SHARDING

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = silu,
        norm: Norm | None = None,
        use_bias: bool = False,
        dropout: float = 0.0,
        kernel_init: Any = truncated_normal(0.02),
        bias_init: Any = zeros,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        hidden: hidden features.
        activation: f.
        norm: norm of the hidden features; None for none.
        use_bias: biases of all layers.
        dropout: dropout rate of the hidden features and of the output.
        """
        common = {
            "use_bias": use_bias,
            "kernel_init": kernel_init,
            "bias_init": bias_init,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.gate = Linear(features, hidden, **common)
        self.up = Linear(features, hidden, **common)
        self.norm = create_norm(norm, hidden, dtype=dtype, param_dtype=param_dtype, rngs=rngs) if norm else None
        self.down = Linear(hidden, features, **common)
        self.activation = activation
        self.dropout = Dropout(dropout, rngs=rngs) if dropout else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``x`` (..., features) to the same shape."""
        x = self.activation(self.gate(x)) * self.up(x)
        x = self.down(x if self.norm is None else self.norm(x))
        return x if self.dropout is None else self.dropout(x)


class ConvMLP(Mixer):
    """An MLP of maps with a depth-wise 3x3 convolution before its activation: ``W2 f(depthwise(g(W1 x)))``.

    PVT v2 (Wang et al., 2022, arXiv:2106.13797), section 3.3. It mixes tokens, and so needs their mask; g is the
    identity, or a relu in the linear form. With ``residual`` the convolution is after the activation and has a residual
    connection: ``W2 (h + depthwise(h))`` with ``h = f(W1 x)`` (RMT, Fan et al., 2024, arXiv:2309.11523). With
    ``response`` the input of W2 is normalized by :class:`GlobalResponseNorm`.
    """

    layouts = ("grid",)

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = gelu,
        first_activation: Callable[[jax.Array], jax.Array] | None = None,
        residual: bool = False,
        response: bool = False,
        dropout: float = 0.0,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        hidden: hidden features.
        activation: f.
        first_activation: g; None for the identity.
        residual: whether the convolution is after the activation, with a residual connection.
        response: whether the input of W2 is normalized by :class:`GlobalResponseNorm`.
        dropout: dropout rate of the hidden features and of the output.
        """
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.up = Linear(features, hidden, kernel_init=kernel_init, **common)
        self.depthwise = DepthwiseConv(hidden, 3, kernel_init=variance_scaling(2.0, "fan_in", "normal"), **common)
        self.response = GlobalResponseNorm(hidden, **common) if response else None
        self.down = Linear(hidden, features, kernel_init=kernel_init, **common)
        self.activation, self.first_activation, self.residual = activation, first_activation, residual
        self.dropout = Dropout(dropout, rngs=rngs) if dropout else None

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        x = self.up(finite_padding(x, tokens.mask))
        x = x if self.first_activation is None else self.first_activation(x)
        if self.residual:
            x = self.activation(x)
            x = x + self.depthwise(without_padding(x, tokens.mask))
        else:
            x = self.activation(self.depthwise(without_padding(x, tokens.mask)))
        x = x if self.response is None else self.response(x, tokens.mask)
        x = self.down(x if self.dropout is None else self.dropout(x))
        return x if self.dropout is None else self.dropout(x)


class GatedConvMLP(Mixer):
    """A gated MLP of maps whose gate is convolved: ``W2 (f(depthwise(W1 x)) * V x)``, with a depth-wise 3x3
    convolution.

    ConvGLU of TransNeXt (Shi, 2024, arXiv:2311.17132), section 3.5. It mixes tokens, and so needs their mask.
    Parameters: ``gate`` (W1), ``up`` (V), ``down`` (linear), ``depthwise``.
    """

    layouts = ("grid",)
    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = _SHARDING

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = gelu,
        dropout: float = 0.0,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        hidden: hidden features.
        activation: f.
        dropout: dropout rate of the hidden features and of the output.
        """
        common = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.gate, self.up = (Linear(features, hidden, kernel_init=kernel_init, **common) for _ in range(2))
        self.depthwise = DepthwiseConv(hidden, 3, kernel_init=variance_scaling(2.0, "fan_in", "normal"), **common)
        self.down = Linear(hidden, features, kernel_init=kernel_init, **common)
        self.activation = activation
        self.dropout = Dropout(dropout, rngs=rngs) if dropout else None

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        x = finite_padding(x, tokens.mask)
        gate = self.activation(self.depthwise(without_padding(self.gate(x), tokens.mask)))
        x = gate * self.up(x)
        x = self.down(x if self.dropout is None else self.dropout(x))
        return x if self.dropout is None else self.dropout(x)
