"""The gated convolution of MambaOut: Do We Really Need Mamba for Vision? (Yu, Wang, CVPR 2025, arXiv:2405.07992), the
block of Mamba without its state space.

    y = W_o (f(W_g x) * [v_1; depthwise(v_2)])        [v_1; v_2] = W_v x

v_2 are the last conv_ratio * features of the hidden features, the only ones that the convolution mixes; f is GELU.
Gated CNNs were introduced by Dauphin et al. (2017, arXiv:1612.08083).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.depthwise import DepthwiseConv
from layers.initializers import truncated_normal
from layers.linear import Linear
from layers.mixer import Mixer, finite_padding, register_mixer, without_padding
from layers.mlp import gelu
from layers.tokens import Tokens


@register_mixer("gated_convolution")
class GatedConvolution(Mixer):
    """A gated MLP of maps with a depth-wise convolution of a part of its values. It mixes channels too, so a block
    needs no MLP beside it.

    Masked tokens are zeros to the convolution, like positions beyond the map.

    Parameters: ``gate``, ``value``, ``out`` (linear), ``conv`` (depth-wise).
    """

    layouts = ("grid",)
    paper = (238,)

    def __init__(
        self,
        features: int,
        *,
        expansion: float = 8 / 3,
        kernel_size: int = 7,
        conv_ratio: float = 1.0,
        activation: Callable[[jax.Array], jax.Array] = gelu,
        use_bias: bool = True,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          expansion: hidden features / features.
          kernel_size: tokens along each side of the convolution's kernel, an odd number.
          conv_ratio: features that the convolution mixes / features.
          activation: f.
          use_bias: biases of the linear layers and the convolution.

        Raises:
          ValueError: a ``conv_ratio`` of no features or of more than are hidden, or an even kernel, which has no
            center.
        """
        hidden, mixed = int(expansion * features), int(conv_ratio * features)
        if not 0 < mixed <= hidden:
            raise ValueError(
                f"the convolution mixes 1 to all {hidden} hidden features; conv_ratio {conv_ratio} is {mixed} of them"
            )
        if kernel_size % 2 == 0:
            raise ValueError(f"the kernel of a mixer needs a center: kernel_size must be odd, got {kernel_size}")
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        linear: dict[str, Any] = {"use_bias": use_bias, "kernel_init": kernel_init, **common}
        self.gate = Linear(features, hidden, **linear)
        self.value = Linear(features, hidden, **linear)
        self.conv = DepthwiseConv(mixed, kernel_size, use_bias=use_bias, kernel_init=kernel_init, **common)
        self.out = Linear(hidden, features, **linear)
        self.activation, self.mixed = activation, mixed

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        x = finite_padding(x, tokens.mask)
        gate, value = self.activation(self.gate(x)), self.value(x)
        still, moved = jnp.split(value, [value.shape[-1] - self.mixed], axis=-1)
        moved = self.conv(without_padding(moved, tokens.mask))
        return self.out(gate * jnp.concatenate([still, moved], axis=-1))
