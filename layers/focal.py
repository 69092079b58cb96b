"""Focal modulation: Focal Modulation Networks (J. Yang et al., NeurIPS 2022, arXiv:2203.11926), equations 5 to 8.

Context is aggregated first, around each token over ever larger windows, and then modulates the token's query:

    c_0 = W_c x;    c_l = GELU(depthwise_l(c_{l-1})), l = 1 .. L;    c_{L+1} = GELU(mean over the map of c_L)
    m = W_m sum_{l=1}^{L+1} g_l c_l,  g = W_g x;    y = W_o (W_q x * m)

The depth-wise kernels have sizes window, window + 2, ... and no bias. The gates g have no activation.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.depthwise import DepthwiseConv
from layers.drop import Dropout
from layers.initializers import lecun_normal, variance_scaling
from layers.linear import Linear
from layers.mixer import Mixer, finite_padding, register_mixer, without_padding
from layers.mlp import gelu
from layers.module import Diagnostic
from layers.norm import create_norm
from layers.tokens import Tokens


@register_mixer("focal_modulation")
class FocalModulation(Mixer):
    """Multiplies each token's query by a gated sum of depth-wise convolutions of growing windows and the map's mean.

    Masked tokens are zeros to every convolution and are left out of the mean: a map padded at the bottom and right
    gives the same outputs as the smaller map.

    Parameters: ``query``, ``context``, ``gates``, ``modulator``, ``out`` (linear), ``levels.N`` (depth-wise), and
    ``norm`` with ``inner_norm``.
    """

    layouts = ("grid",)
    paper = (233,)

    def __init__(
        self,
        features: int,
        *,
        levels: int = 2,
        window: int = 3,
        normalize: bool = False,
        inner_norm: bool = False,
        use_bias: bool = True,
        dropout: float = 0.0,
        kernel_init: Any = lecun_normal,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          levels: L, number of depth-wise convolutions; with 0 only the map's mean is context.
          window: kernel size of the first convolution; each further kernel is larger by 2.
          normalize: the sum over levels is divided by L + 1.
          inner_norm: a layer norm before ``out``, in the largest models.
          use_bias: biases of all linear layers except ``out``, which always has one.
          dropout: rate of the dropout on the output.
          kernel_init: initializer of the linear layers except the modulator, which has the initial values of a PyTorch
            convolution, as in the authors' code. Outputs of three layers are multiplied: small initial values, such as
            a standard deviation of 0.02 with few features, make the output vanish.

        Raises:
          ValueError: a negative number of levels, or a window that is not odd.
        """
        if levels < 0 or window < 1 or window % 2 == 0:
            raise ValueError(
                f"levels must be at least 0 and the window odd, so that it has a center; got {levels} and {window}"
            )
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        linear: dict[str, Any] = {"use_bias": use_bias, "kernel_init": kernel_init, **common}
        self.query = Linear(features, features, **linear)
        self.context = Linear(features, features, **linear)
        self.gates = Linear(features, levels + 1, **linear)
        self.levels = nnx.List(
            [DepthwiseConv(features, window + 2 * level, use_bias=False, **common) for level in range(levels)]
        )
        self.modulator = Linear(
            features, features, **{**linear, "kernel_init": variance_scaling(1 / 3, "fan_in", "uniform")}
        )
        self.norm = create_norm("layer", features, epsilon=1e-5, **common) if inner_norm else None
        self.out = Linear(features, features, kernel_init=kernel_init, **common)
        self.dropout = Dropout(dropout, rngs=rngs) if dropout else None
        self.normalize = normalize

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        x = finite_padding(x, tokens.mask)
        context, gates = self.context(x), self.gates(x)
        self.sow(Diagnostic, "gates", gates)
        gathered = jnp.zeros_like(context)
        for i, level in enumerate(self.levels):
            context = gelu(level(without_padding(context, tokens.mask)))
            gathered = gathered + gates[..., i : i + 1] * context
        gathered = gathered + gates[..., -1:] * gelu(_mean(context, tokens.mask))
        if self.normalize:
            gathered = gathered / (len(self.levels) + 1)
        y = self.query(x) * self.modulator(gathered)
        y = self.out(y if self.norm is None else self.norm(y))
        return y if self.dropout is None else self.dropout(y)


def _mean(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The mean of the real tokens of a map (batch, height, width, features), (batch, 1, 1, features), summed in
    float32.
    """
    wide = without_padding(x, mask).astype(jnp.promote_types(x.dtype, jnp.float32))
    count = x.shape[1] * x.shape[2] if mask is None else jnp.maximum(mask.sum((1, 2)), 1)[:, None, None, None]
    return (jnp.sum(wide, (1, 2), keepdims=True) / count).astype(x.dtype)
