"""Manhattan self-attention: RMT, Retentive Networks Meet Vision Transformers (Fan et al., CVPR 2024,
arXiv:2309.11523).

    Y = softmax(R Q (R K)^T / sqrt(d) - s_h D) V + C(V)        D_ij = |row_i - row_j| + |column_i - column_j|
    s_h = -log(1 - 2^(-2 - range h / heads))                   h = 0, 1, ... of ``heads``

as in the authors' code, where the penalty is added to the logits before the softmax. R is a rotary embedding of the
token's index in row-major order, C a depth-wise 5x5 convolution. The decomposed form mixes the tokens of each row, then
the results along each column, with the same queries and keys:

    U = softmax(R Q (R K)^T / sqrt(d) - s_h |column_i - column_j|) V     in each row
    Y = softmax(R Q (R K)^T / sqrt(d) - s_h |row_i - row_j|) U + C(V)    in each column

For comparison, D can be the distance in row-major order, |i - j|, or 0.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from layers.attention.projected import HeadOptions, ProjectedAttention
from layers.attention.relative import GridPenalty
from layers.depthwise import DepthwiseConv
from layers.mixer import register_mixer, without_padding
from layers.module import Diagnostic, of_layers
from layers.position import Rotary, default_positions
from layers.tokens import Tokens
from pallas_kernels import attention, attention_weights


@register_mixer("manhattan")
class ManhattanAttention(ProjectedAttention):
    """Softmax attention on a map whose logits decrease with the Manhattan distance.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear), and ``enhancement``, the convolution C.
    """

    layouts = ("grid",)
    paper = (9,)

    def __init__(
        self,
        features: int,
        *,
        decomposed: bool = False,
        decay_range: float = 4.0,
        distance: Literal["manhattan", "index", "none"] = "manhattan",
        **options: Unpack[HeadOptions],
    ):
        """Args:
          decomposed: use the decomposed form, for large maps.
          decay_range: ``range`` of the equation, which sets how far the slopes of the heads differ.
          distance: D: "manhattan", or the baselines "index" and "none", which measure the benefit of the 2-D distance.
          options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, an unknown distance, or "index" with ``decomposed``.
        """
        if distance not in ("manhattan", "index", "none"):
            raise ValueError(f'distance is "manhattan", "index" or "none", got {distance!r}')
        if decomposed and distance == "index":
            raise ValueError(
                'distance="index" is between all tokens of a map, and decomposed=True mixes the tokens of one row or '
                "column at a time: give decomposed=False"
            )
        super().__init__(features, rotary=Rotary(interleaved=True, endpoint=True), **options)
        self.enhancement = DepthwiseConv(features, 5, **of_layers(options))
        self.decomposed, self.decay_range, self.distance = decomposed, decay_range, distance

    @property
    def complexity(self) -> float:
        return 1.5 if self.decomposed else 2.0

    @property
    def slopes(self) -> np.ndarray:
        """s of each head, float32 (num_heads,); 0 with distance="none"."""
        if self.distance == "none":
            return np.zeros(self.num_heads, np.float32)
        exponent = 2 + self.decay_range * np.arange(self.num_heads) / self.num_heads
        return (-np.log1p(-np.exp2(-exponent))).astype(np.float32)

    def places(self, tokens: Tokens, length: int) -> jax.Array:
        return default_positions(length)

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        (grid, _), mask = tokens.image(x.shape[1]), tokens.mask
        if not self.decomposed:
            # In a map of one row, columns are indices.
            y = self._attend(q, k, v, mask, q.shape[1] if self.distance == "index" else grid[1])
        else:
            q, k, y = (a.reshape(-1, grid[1], *a.shape[2:]) for a in (q, k, v))
            y = self._attend(q, k, y, None if mask is None else mask.reshape(-1, grid[1]), grid[1])
            q, k, y = (_turned(a, grid) for a in (q, k, y))
            y = self._attend(q, k, y, None if mask is None else _turned(mask.reshape(-1, grid[1]), grid), grid[0])
            y = _turned(y, grid[::-1])
        local = self.enhancement(without_padding(v.reshape(x.shape), mask).reshape(-1, *grid, x.shape[2]))
        return y.reshape(x.shape) + local.reshape(x.shape)

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, width: int) -> jax.Array:
        """Attention of all tokens of maps, or of single rows, of ``width`` columns."""
        rows = jnp.broadcast_to(self.slopes, (1, q.shape[1], self.num_heads))
        seen = None if mask is None else mask[:, None, None]
        options: dict[str, Any] = {"mask": seen, "score": GridPenalty(width, "manhattan"), "rows": rows}
        if self.sowing(Diagnostic, "attention"):
            self.sow(Diagnostic, "attention", attention_weights(q, k, **options))
        return attention(q, k, v, **options)


def _turned(x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Rows of maps (batch * height, width, ...) as columns (batch * width, height, ...)."""
    x = x.reshape(-1, *grid, *x.shape[2:])
    return jnp.swapaxes(x, 1, 2).reshape(-1, grid[0], *x.shape[3:])
