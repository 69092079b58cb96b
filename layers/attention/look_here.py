"""Directed attention: LookHere, Vision Transformers with Directed Attention Generalize and Extrapolate (Fuller et al.,
NeurIPS 2024, arXiv:2405.13985).

    y_i = sum_j softmax_j(q_i . k_j / sqrt(d) - G s m_h |p_i - p_j|) v_j        over the tokens j in the head's field

Each head looks in one direction of the image, at the tokens within an angle around it; there is no other position
encoding. |.| is the Euclidean distance in tokens, m_h the slope of the head, s that of the layer and G that of the
model. Prefix tokens see all tokens and are seen by all, without a penalty. No learned parameter depends on the size of
the image.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from layers.attention.projected import HeadOptions, ProjectedAttention
from layers.attention.relative import GridPenalty
from layers.mixer import register_mixer
from layers.module import Constant
from layers.norm import Norm
from layers.tokens import Tokens
from pallas_kernels import attention, attention_weights, masks
from suggestions import unknown

Field = tuple[float, float] | None
"""Direction and angle in degrees, as in :class:`pallas_kernels.masks.FieldOfView`; None sees all."""

FIELDS: dict[str, tuple[Field, ...]] = {
    "halves": tuple((middle, 180.0) for middle in (90.0, 270.0, 180.0, 0.0)),
    "corners": tuple((middle, 90.0) for middle in (135.0, 45.0, 225.0, 315.0)),
    "triangles": tuple((middle, 90.0) for middle in (90.0, 270.0, 180.0, 0.0)),
    "diagonals": tuple((middle, 180.0) for middle in (45.0, 135.0, 315.0, 225.0)),
    "eighths1": tuple((middle, 45.0) for middle in (112.5, 247.5, 157.5, 22.5)),
    "eighths2": tuple((middle, 45.0) for middle in (67.5, 292.5, 202.5, 337.5)),
    "none": (None,) * 4,
}
"""The fields of view of four heads, by the authors' names."""


@register_mixer("lookhere")
class DirectedAttention(ProjectedAttention):
    """Softmax attention whose heads have fields of view in an image, and logits that decrease with distance.

    Parameters: ``query``, ``key``, ``value``, ``out`` (linear).
    """

    weighs_values = True
    layouts = ("grid", "image")
    paper = (164,)

    def __init__(
        self,
        features: int,
        *,
        fields: Sequence[str] = ("triangles",),
        slope: float = 1.0,
        layer_slopes: tuple[float, float] = (1.5, 0.5),
        rounded: bool = False,
        index: int = 0,
        depth: int = 1,
        qk_norm: Norm | None = None,
        **options: Unpack[HeadOptions],
    ):
        """Args:
          fields: names of :data:`FIELDS`. Groups of four heads are divided evenly among them; the first names get the
            remaining groups.
          slope, layer_slopes: G, and s of the first and the last of ``depth`` blocks, interpolated linearly in between.
            The defaults are our choice: released models store theirs in the checkpoints.
          rounded: round the penalties to bfloat16, as in the authors' code.
          index, depth: index of the block, and number of blocks of the model.
          qk_norm, options: as in :class:`ProjectedAttention`.

        Raises:
          ValueError: features not divisible by num_heads, an unknown name, or more names than groups of heads.
        """
        super().__init__(features, qk_norm=qk_norm, **options)
        names = _by_head(tuple(fields), self.num_heads)
        self.fields = tuple(FIELDS[name][head % 4] for head, name in enumerate(names))
        # An array, so that all blocks of a stack share one compiled program.
        layer = np.linspace(*layer_slopes, depth)[index]
        self.rounded = rounded
        self.slopes = Constant(jnp.asarray(slope * layer * _slopes(names), jnp.float32))

    @property
    def complexity(self) -> float:
        return 2.0

    def core(self, q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array, tokens: Tokens) -> jax.Array:
        ((_, width), prefix), length = tokens.image(x.shape[1]), x.shape[1]
        own, theirs = None, None
        if tokens.mask is not None:
            # The op takes only one mask, so padding becomes a document of its own.
            own, theirs = jnp.zeros((1, length), jnp.int32), jnp.where(tokens.mask, 0, -1)
        return attention(q, k, v, query_segments=own, key_segments=theirs, **self._directions(width, prefix, length))

    def views(self, grid: tuple[int, int]) -> jax.Array:
        """The attention weights of identical tokens, determined by fields and distances alone: float32 (heads, tokens,
        tokens), without prefix tokens.
        """
        length = grid[0] * grid[1]
        alike = jnp.zeros((1, length, self.num_heads, self.head_dim), jnp.float32)
        return attention_weights(alike, alike, **self._directions(grid[1], 0, length))[0]

    def _directions(self, width: int, prefix: int, length: int) -> dict[str, Any]:
        """The fields and the distances, as options of the op."""
        views = (masks.FieldOfView(width, *field, prefix) if field else masks.window() for field in self.fields)
        rows = jnp.broadcast_to(self.slopes[...], (1, length, self.num_heads))
        score = GridPenalty(width, "euclidean", prefix, self.rounded)
        return {"mask": masks.ByHead(tuple(views)), "score": score, "rows": rows}


def _by_head(fields: tuple[str, ...], num_heads: int) -> list[str]:
    """The name of the field set of each head."""
    for name in fields:
        if name not in FIELDS:
            raise ValueError(unknown("field of view", name, FIELDS))
    groups = np.array_split(np.arange(-(-num_heads // 4)), max(len(fields), 1))
    if not all(len(group) for group in groups):
        raise ValueError(f"{num_heads} heads are {-(-num_heads // 4)} groups of four, too few for {len(fields)} fields")
    return [name for name, group in zip(fields, groups, strict=True) for _ in range(4 * len(group))][:num_heads]


def _slopes(names: list[str]) -> np.ndarray:
    """m of each head: 1/2, 1/4, ... per group of four heads of one name; powers of 1/4 for heads that see all."""
    made: list[float] = []
    for name, group in itertools.groupby(names):
        count = len(list(group))
        each, base = (max(count // 4, 1), 4.0) if name == "none" else (4, 2.0)
        made += [base ** -(1 + head // each) for head in range(count)]
    return np.asarray(made)
