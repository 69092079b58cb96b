"""Halo attention: Scaling Local Self-Attention for Parameter Efficient Visual Backbones (Vaswani et al., CVPR 2021,
arXiv:2103.12731).

The map is divided into blocks of b x b tokens. All queries of a block attend to the same window of (b + 2h) x (b + 2h)
tokens around it, with h the halo:

    y_i = sum_j softmax_j(q_i . k_j / sqrt(d) + q_i . (r^y_{row(j) - row(i)} + r^x_{column(j) - column(i)})) v_j

r^y and r^x are learned vectors per offset, shared by the heads; rows and columns are counted from the corner of the
block for queries and of the window for keys. Positions outside the map have keys and values of zeros that are attended
to, as in timm's code and released models, or are masked, as in the paper. With strides, only every stride-th query is
computed, and the map shrinks.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from layers.initializers import truncated_normal
from layers.linear import Linear
from layers.mixer import Mixer, finite_padding, register_mixer, without_padding
from layers.tokens import Tokens
from pallas_kernels import attention


@register_mixer("halo")
class HaloAttention(Mixer):
    """Attention of the tokens of a block to the block and a halo around it.

    Masked tokens are treated like positions outside the map.

    Parameters: ``query``, ``key_value`` (linear; for each head its keys, then its values), ``rows``, ``columns``
    (2 (block + 2 halo) - 1, head_dim), in ascending order of row of the key - row of the query, and ``out`` (linear),
    unless left out.
    """

    layouts = ("grid",)
    paper = (39,)
    undecayed = ("rows", "columns")

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        block: int = 8,
        halo: int = 3,
        head_dim: int | None = None,
        strides: int = 1,
        padding: Literal["zeros", "masked"] = "zeros",
        use_bias: bool = False,
        use_out: bool = True,
        kernel_init: Any = truncated_normal(0.02),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
          block, halo: b and h, tokens along each side.
          num_heads: number of heads.
          head_dim: features of a query or key head; value heads have features / num_heads.
          strides: reduces a map of (height, width) to (height / strides, width / strides); must divide ``block``.
          padding: keys outside the map: "zeros" attends to them, "masked" does not.
          use_bias: biases of the query, key and value projections.
          use_out: whether an output projection follows; HaloNet's blocks have their own.

        Raises:
          ValueError: features not divisible by num_heads, strides that do not divide the block, or another padding.
        """
        if features % num_heads:
            raise ValueError(f"{features} features can't be split over {num_heads} heads")
        if block % strides:
            raise ValueError(f"strides must divide the block's {block} tokens; got {strides}")
        if padding not in ("zeros", "masked"):
            raise ValueError(f'padding is "zeros" or "masked", got {padding!r}')
        head_dim = head_dim or features // num_heads
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        linear: dict[str, Any] = {"use_bias": use_bias, "kernel_init": kernel_init, **common}
        self.query = Linear(features, num_heads * head_dim, **linear)
        self.key_value = Linear(features, num_heads * head_dim + features, **linear)
        shape, init = (2 * (block + 2 * halo) - 1, head_dim), truncated_normal(head_dim**-0.5)
        self.rows = nnx.Param(init(rngs.params(), shape, param_dtype))
        self.columns = nnx.Param(init(rngs.params(), shape, param_dtype))
        self.out = Linear(features, features, kernel_init=kernel_init, **common) if use_out else None
        self.num_heads, self.head_dim, self.block, self.halo = num_heads, head_dim, block, halo
        self.strides, self.padding = strides, padding

    @property
    def complexity(self) -> float:
        return 1.0

    def mix(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        batch, height, width, features = x.shape
        x, heads, window = finite_padding(x, tokens.mask), self.num_heads, self.block + 2 * self.halo
        grid = -(-height // self.block), -(-width // self.block)
        blocks, side = grid[0] * grid[1], self.block // self.strides
        q = self.query(x[:, :: self.strides, :: self.strides])
        size = q.shape[1:3]
        q = jnp.pad(q, ((0, 0), *((0, n * side - has) for n, has in zip(grid, size, strict=True)), (0, 0)))
        q = q.reshape(batch, grid[0], side, grid[1], side, heads, self.head_dim).swapaxes(2, 3)
        q = q.reshape(batch * blocks, side, side, heads, self.head_dim)
        kv = self._windows(without_padding(self.key_value(x), tokens.mask), grid)
        kv = kv.reshape(batch * blocks, window * window, heads, -1)
        mask = self._seen(x.shape, tokens.mask, grid)
        y = self._attend(q, kv[..., : self.head_dim], kv[..., self.head_dim :], mask)
        y = y.reshape(batch, *grid, side, side, features).swapaxes(2, 3)
        y = y.reshape(batch, grid[0] * side, grid[1] * side, features)[:, : size[0], : size[1]]
        return y if self.out is None else self.out(y)

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Attention in every block: of queries (blocks, side, side, heads, dim) to keys (blocks, window^2, heads, dim).

        The relative part of the logits is also a dot product: that of all q . r^y with the one-hot row of the key.
        """
        side, window = q.shape[1], self.block + 2 * self.halo
        offsets = jnp.arange(window) - jnp.arange(side)[:, None] + window - 1
        rows, columns = (table[...].astype(q.dtype)[offsets] for table in (self.rows, self.columns))
        down = jnp.einsum("byxhd,yjd->byxhj", q, rows)
        across = jnp.einsum("byxhd,xjd->byxhj", q, columns)
        q = jnp.concatenate([q * self.head_dim**-0.5, down, across], -1).reshape(
            q.shape[0], side * side, self.num_heads, -1
        )
        places = jnp.eye(window, dtype=k.dtype)
        at = jnp.concatenate([jnp.repeat(places, window, 0), jnp.tile(places, (window, 1))], -1)
        k = jnp.concatenate([k, jnp.broadcast_to(at[:, None], (*k.shape[:3], 2 * window))], -1)
        y = attention(q, k, v, mask=mask, scale=1.0)
        return y.reshape(q.shape[0], side, side, -1)

    def _windows(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Extracts the windows of all blocks: (batch, height, width, features) to (batch, rows, columns, window,
        window, features).
        """
        window = self.block + 2 * self.halo
        for axis, count in zip((1, 3), grid, strict=True):
            end = (count - 1) * self.block + window - self.halo - x.shape[axis]
            sides = [(self.halo, end) if n == axis else (0, 0) for n in range(x.ndim)]
            x = jnp.pad(x, sides)
            starts = range(0, count * self.block, self.block)
            x = jnp.stack([jax.lax.slice_in_dim(x, i, i + window, axis=axis) for i in starts], axis)
        return x.swapaxes(2, 3)

    def _seen(self, shape: tuple[int, ...], mask: jax.Array | None, grid: tuple[int, int]) -> jax.Array | None:
        """Mask of the keys, bool (batch * blocks, 1, 1, window^2); None with padding="zeros", where all count."""
        if self.padding == "zeros":
            return None
        real = jnp.ones(shape[:3], bool) if mask is None else mask
        return self._windows(real[..., None], grid).reshape(shape[0] * grid[0] * grid[1], 1, 1, -1)
