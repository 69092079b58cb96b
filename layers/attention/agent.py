"""Agent attention: On the Integration of Softmax and Linear Attention (Han et al., ECCV 2024, arXiv:2312.08874), eqs. 4
to 6.

    A = pool(Q)                                  agent tokens: averages of the queries over cells of the map
    V_A = softmax(A K^T / sqrt(d) + B_1) V       agents aggregate from all tokens
    Y = softmax(Q A^T / sqrt(d) + B_2) V_A + DWC(V)

and broadcast back to them; DWC is a depth-wise 3x3 convolution. The cost is tokens times agents. Each bias, B_1 or B_2,
is the sum of a coarse table, bilinearly resampled to the map, a table of rows and a table of columns.
"""

from __future__ import annotations

import math
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from layers.attention.projected import HeadOptions, ProjectedAttention
from layers.depthwise import DepthwiseConv
from layers.initializers import truncated_normal
from layers.mixer import register_mixer, without_padding
from layers.module import Diagnostic, Module, of_layers
from layers.pool import adaptive_average_pool
from layers.tokens import Tokens
from pallas_kernels import attention, attention_weights

COARSE = 7
"""Rows and columns of the coarse tables."""


class AgentBias(Module):
    """Learned biases between agents and token positions, initially near 0.

    Parameters: ``coarse`` (heads, agents, 7, 7); for a map of known size ``rows`` (heads, agents, rows) and ``columns``
    (heads, agents, columns); for prefix tokens ``prefix`` (heads, agents, prefix).
    """

    undecayed = ("coarse", "rows", "columns", "prefix")

    def __init__(
        self,
        num_heads: int,
        agents: int,
        grid: tuple[int, int] | None,
        prefix: int,
        *,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        def table(*shape: int) -> nnx.Param:
            return nnx.Param(truncated_normal(0.02)(rngs.params(), (num_heads, agents, *shape), param_dtype))

        self.coarse = table(COARSE, COARSE)
        self.rows = None if grid is None else table(grid[0])
        self.columns = None if grid is None else table(grid[1])
        self.prefix = table(prefix) if prefix else None

    def __call__(self, grid: tuple[int, int], prefix: int) -> jax.Array:
        """The bias, at least float32, (heads, agents, prefix + rows * columns); prefix tokens without their own entry
        get 0.

        Tables of another grid are resampled bilinearly, like PyTorch's ``interpolate`` without aligned corners.
        """

        def resampled(table: nnx.Param, *sides: int) -> jax.Array:
            wide = table[...].astype(jnp.promote_types(table.dtype, jnp.float32))
            return jax.image.resize(wide, (*wide.shape[:2], *sides), "bilinear", antialias=False)

        height, width = grid
        scores = resampled(self.coarse, height, width)
        if self.rows is not None and self.columns is not None:
            scores = scores + resampled(self.rows, height)[..., None] + resampled(self.columns, width)[:, :, None]
        scores = scores.reshape(*scores.shape[:2], height * width)
        own = scores[..., :0] if self.prefix is None else self.prefix[...].astype(scores.dtype)[..., :prefix]
        return jnp.concatenate([own, jnp.zeros_like(scores, shape=(*own.shape[:2], prefix - own.shape[2])), scores], -1)


@register_mixer("agent")
class AgentAttention(ProjectedAttention):
    """Attention of the tokens of a map through a few agents, averages of their queries; prefix tokens are optional.

    Masked tokens are excluded from the averages, are not attended to, and count as zeros in the convolution.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), ``agent_bias.*`` (B_1), ``token_bias.*`` (B_2),
    ``enhancement`` (convolution).
    """

    layouts = ("grid", "image")
    paper = (2,)

    def __init__(
        self,
        features: int,
        *,
        agents: int = 49,
        grid: tuple[int, int] | None = None,
        prefix: int = 0,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          agents: number of agents, a square number: they form a square grid over the map.
          grid: rows and columns of the map for the row and column biases; None uses only the coarse tables.
          prefix: number of prefix tokens with a bias.
          options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, or ``agents`` is not a square number.
        """
        self.side = math.isqrt(max(agents, 0))
        if agents < 1 or self.side**2 != agents:
            raise ValueError(f"agents form a square grid over the map: {agents} is not a square number")
        super().__init__(features, **options)
        common = of_layers(options)
        made = {name: common[name] for name in ("param_dtype", "rngs")}
        self.agent_bias, self.token_bias = (AgentBias(self.num_heads, agents, grid, prefix, **made) for _ in range(2))
        self.enhancement = DepthwiseConv(features, 3, **common)

    @property
    def complexity(self) -> float:
        return 1.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        (grid, prefix), mask, batch = tokens.image(x.shape[1]), tokens.mask, x.shape[0]
        on_map = None if mask is None else mask[:, prefix:].reshape(batch, *grid)

        def as_map(heads: jax.Array) -> jax.Array:
            return without_padding(heads[:, prefix:].reshape(batch, *grid, -1), on_map)

        pooled, share = adaptive_average_pool(as_map(q), (self.side, self.side), on_map)
        agents = pooled.reshape(batch, -1, *q.shape[2:])
        gathering: dict[str, Any] = {
            "bias": self.agent_bias(grid, prefix)[None],
            "mask": None if mask is None else mask[:, None, None],
        }
        handing: dict[str, Any] = {
            "bias": jnp.swapaxes(self.token_bias(grid, prefix), 1, 2)[None],
            "mask": None if mask is None else (share > 0).reshape(batch, 1, 1, -1),
        }
        if self.sowing(Diagnostic, "attention"):
            to_agents, to_tokens = attention_weights(q, agents, **handing), attention_weights(agents, k, **gathering)
            self.sow(Diagnostic, "attention", to_agents @ to_tokens)
        y = attention(q, agents, attention(agents, k, v, **gathering), **handing)
        local = self.enhancement(as_map(v)).reshape(batch, -1, *v.shape[2:])
        return y + jnp.pad(local, ((0, 0), (prefix, 0), (0, 0), (0, 0)))
