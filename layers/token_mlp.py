"""MLPs across tokens: the mixing matrices are learned parameters and do not depend on the input.

    token MLP        y = (W_2 f(W_1 x^T + b_1) + b_2)^T    MLP-Mixer (Tolstikhin et al., 2021, arXiv:2105.01601), eq. 1
    linear           y = (W x^T + b)^T                     ResMLP (Touvron et al., 2021, arXiv:2105.03404), eq. 2
    spatial gating   y = W_o (u * (W norm(v)^T + b)^T)     gMLP (Liu et al., 2021, arXiv:2105.08050), section 2
                     [u; v] = f(W_i x)

x^T has a row for each feature and a column for each token: all features share the matrices. f is GELU. The spatial gate
starts near 1, with W near 0 and b = 1.

The matrices belong to the cells of one grid. The papers' models accept no other grid; here the matrices are resampled
like position tables, by bicubic interpolation over the cells. Where cells are summed over, they are also multiplied by
the ratio of the old to the new number of cells, so that sums keep their magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.broadcast import broadcast
from layers.drop import Dropout
from layers.initializers import InitializerSpec, create_initializer, normal, ones, truncated_normal, zeros
from layers.linear import Linear
from layers.mixer import Mixer, finite_padding, register_mixer, without_padding
from layers.mlp import gelu
from layers.module import Module
from layers.norm import Norm, create_norm
from layers.position import resample_table
from layers.tokens import Tokens

GRID = (14, 14)
"""The tokens of a square image of 224 pixels in patches of 16."""


class TokenLinear(Module):
    """A linear layer whose inputs, outputs or both are the cells of a grid; all features share it.

    Parameters: ``kernel`` (inputs, outputs), ``bias`` (outputs,); cells are counted row by row.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        *,
        inputs: int | None = None,
        outputs: int | None = None,
        kernel_init: InitializerSpec | None = None,
        bias_init: InitializerSpec = zeros,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        grid: rows and columns of the cells.
        inputs, outputs: number of hidden inputs or outputs; None for the cells of the grid.
        kernel_init: the default is normal with variance 1 / inputs.
        bias_init: initializer of the bias.
        """
        cells = grid[0] * grid[1]
        shape = (inputs or cells, outputs or cells)
        init = normal(shape[0] ** -0.5) if kernel_init is None else create_initializer(kernel_init)
        self.kernel = nnx.Param(init(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(create_initializer(bias_init)(rngs.params(), shape[1:], param_dtype))
        self.grid, self.dtype = tuple(grid), dtype
        self.reads, self.writes = inputs is None, outputs is None

    def __call__(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Maps ``x`` (batch, inputs, features) to (batch, outputs, features), for the cells of ``grid``."""
        kernel, bias = self.of(grid)
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel.dtype)
        y = jnp.einsum("bnd,nm->bmd", x.astype(dtype), kernel.astype(dtype))
        return y + broadcast(bias[:, None], y.shape, dtype)

    def of(self, grid: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
        """Kernel (inputs, outputs) and bias (outputs,), resampled for the cells of ``grid``."""
        kernel, bias = self.kernel[...], self.bias[...]
        if tuple(grid) == self.grid:
            return kernel, bias
        own, cells = self.grid, grid[0] * grid[1]
        if self.writes:
            by_cell = resample_table(kernel.T.reshape(*own, -1), grid).reshape(cells, -1)
            kernel, bias = by_cell.T, resample_table(bias.reshape(*own, 1), grid).reshape(cells)
        if self.reads:
            by_cell = resample_table(kernel.reshape(*own, -1), grid).reshape(cells, -1)
            kernel = by_cell * (own[0] * own[1] / cells)
        return kernel, bias


@register_mixer("token_mlp")
class TokenMLP(Mixer):
    """An MLP across the tokens of a map, or with ``hidden=None`` one linear layer.

    Masked tokens are left out of the sums. Parameters: ``up``, ``down`` (:class:`TokenLinear`), or ``linear`` alone.
    """

    layouts = ("grid",)

    def __init__(
        self,
        features: int,
        *,
        grid: tuple[int, int] = GRID,
        hidden: int | None = 256,
        activation: Callable[[jax.Array], jax.Array] = gelu,
        dropout: float = 0.0,
        kernel_init: InitializerSpec | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        grid: rows and columns of the matrices' cells.
        hidden: hidden tokens; None for one linear layer.
        activation: f.
        dropout: dropout rate after the activation and after ``down``; unused by a single linear layer.
        """
        del features  # all features share the matrices
        common: dict[str, Any] = {
            "kernel_init": kernel_init,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        if hidden is None:
            self.linear = TokenLinear(grid, **common)
        else:
            self.up = TokenLinear(grid, outputs=hidden, **common)
            self.down = TokenLinear(grid, inputs=hidden, **common)
        self.hidden, self.activation = hidden, activation
        self.dropout = Dropout(dropout, rngs=rngs) if dropout and hidden is not None else None

    @property
    def complexity(self) -> float:
        return 2.0 if self.hidden is None else 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        batch, height, width, features = x.shape
        grid = (height, width)
        y = without_padding(x, tokens.mask).reshape(batch, height * width, features)
        if self.hidden is None:
            return self.linear(y, grid).reshape(x.shape)
        y = self.activation(self.up(y, grid))
        y = self.down(y if self.dropout is None else self.dropout(y), grid)
        return (y if self.dropout is None else self.dropout(y)).reshape(x.shape)


@register_mixer("spatial_gating")
class SpatialGating(Mixer):
    """A gated MLP of maps whose gate is a linear layer across tokens. It mixes channels too, so a block needs no MLP.

    Masked tokens are left out of the sums. Parameters: ``up``, ``down`` (linear), ``norm`` (of v), ``gate``
    (:class:`TokenLinear`).
    """

    layouts = ("grid",)

    def __init__(
        self,
        features: int,
        *,
        grid: tuple[int, int] = GRID,
        expansion: float = 6.0,
        activation: Callable[[jax.Array], jax.Array] = gelu,
        norm: Norm = "layer",
        norm_epsilon: float = 1e-5,
        dropout: float = 0.0,
        kernel_init: Any = truncated_normal(0.02),
        gate_init: InitializerSpec = normal(1e-6),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          grid: rows and columns of the matrix's cells.
          expansion: features of u and v together / features.
          activation: f.
          norm, norm_epsilon: norm of v.
          gate_init: initializer of W.
          dropout: dropout rate of the hidden features and of the output.

        Raises:
          ValueError: the hidden features can't be split into two equal halves u and v.
        """
        hidden = int(expansion * features)
        if hidden % 2:
            raise ValueError(f"{hidden} hidden features can't be halved: expansion * features must be even")
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.up = Linear(features, hidden, kernel_init=kernel_init, **common)
        self.norm = create_norm(norm, hidden // 2, epsilon=norm_epsilon, **common)
        self.gate = TokenLinear(grid, kernel_init=gate_init, bias_init=ones, **common)
        self.down = Linear(hidden // 2, features, kernel_init=kernel_init, **common)
        self.activation = activation
        self.dropout = Dropout(dropout, rngs=rngs) if dropout else None

    @property
    def complexity(self) -> float:
        return 2.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        batch, height, width, _ = x.shape
        hidden = self.activation(self.up(finite_padding(x, tokens.mask)))
        hidden = hidden if self.dropout is None else self.dropout(hidden)
        u, v = jnp.split(hidden, 2, axis=-1)
        v = without_padding(self.norm(v), tokens.mask)
        gate = self.gate(v.reshape(batch, height * width, -1), (height, width))
        y = self.down(u * gate.reshape(u.shape))
        return y if self.dropout is None else self.dropout(y)
