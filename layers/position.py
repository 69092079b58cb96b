"""Positional encodings: tables added to tokens, rotations of queries and keys, and biases on attention scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layers.initializers import truncated_normal
from layers.linear import Linear
from layers.module import Module
from layers.tokens import grid_positions as grid_positions


def default_positions(length: int, batch: int = 1) -> jax.Array:
    """Positions 0, 1, 2, ... as (batch, length) int32."""
    return jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))


def sincos_table(grid: tuple[int, int], features: int, temperature: float = 10000.0) -> np.ndarray:
    """Fixed sine-cosine table of a grid, (height, width, features): sin and cos of the column, then of the row, in
    quarters.

    Better plain ViT baselines for ImageNet-1k (Beyer et al., 2022, arXiv:2205.01580).

    Raises:
      ValueError: features not divisible by 4.
    """
    if features % 4:
        raise ValueError(f"a 2-D sine-cosine table needs features divisible by 4, got {features}")
    omega = 1.0 / temperature ** (np.arange(features // 4) / (features // 4))
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    parts = [f(axis[..., None] * omega) for axis in (columns, rows) for f in (np.sin, np.cos)]
    return np.concatenate(parts, -1).astype(np.float32)


def sinusoids(length: int, features: int, temperature: float = 10000.0) -> np.ndarray:
    """Fixed table for a sequence, (length, features): sine and cosine of each wavelength in neighboring features.

    Attention Is All You Need (Vaswani et al., 2017, arXiv:1706.03762), section 3.5.
    """
    angles = np.arange(length)[:, None] / temperature ** (2 * (np.arange(features) // 2) / features)
    return np.where(np.arange(features) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def resample_table(table: jax.Array, grid: tuple[int, int], *, antialias: bool = True) -> jax.Array:
    """Resizes a table (height, width, ...) of a grid to another grid by bicubic interpolation.

    Args:
      antialias: True is the form of timm, and of PyTorch with ``antialias=True``: cubic kernels with a = -0.5, widened
        where the grid shrinks, and renormalized at the edges. False is PyTorch's default: a = -0.75, always four cells,
        the outermost one repeated beyond the edge.
    """
    if tuple(table.shape[:2]) == tuple(grid):
        return table
    wide = table.astype(jnp.float32)
    if antialias:
        return jax.image.resize(wide, (*grid, *table.shape[2:]), "bicubic", antialias=True).astype(table.dtype)
    return _along_both_axes(wide, *(_cubic_weights(*sizes) for sizes in zip(table.shape, grid, strict=False))).astype(
        table.dtype
    )


def resample_offsets(table: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Resizes a table (2 height - 1, 2 width - 1, ...) over offsets within a window to the offsets of another window.

    BEiT (Bao et al., 2022, arXiv:2106.08254), as in the authors' code and timm: the old offsets are placed at distances
    1, 1 + q, 1 + q + q^2, ... from the center, with the ratio q (from 1.01 to 1.5) that spreads them over the new
    window, so that small offsets keep their meaning. Values are interpolated linearly between them and constant beyond
    the last.
    """
    if tuple(table.shape[:2]) == tuple(shape):
        return table
    return _along_both_axes(
        table.astype(jnp.float32), *(_offset_weights(*sizes) for sizes in zip(table.shape, shape, strict=False))
    ).astype(table.dtype)


def _along_both_axes(table: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Weighted sums over the first two axes, with weights (new, old) for each."""
    return jnp.einsum("ih,jw,hw...->ij...", rows, columns, table, precision="highest")


def _cubic_weights(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """Weights (new, old) of the four cells around each new one: cubic convolution (Keys, 1981), with the edge cells
    repeated beyond the edges.
    """
    place = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for shift in (-1, 0, 1, 2):
        cell = np.floor(place) + shift
        x = np.abs(place - cell)
        near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        np.add.at(weights, (np.arange(new), np.clip(cell, 0, old - 1).astype(int)), np.where(x <= 1, near, far))
    return weights.astype(np.float32)


def _offset_weights(old: int, new: int) -> np.ndarray:
    """Weights (new, old) of linear interpolation between old offsets in geometric progression."""
    low, high = 1.01, 1.5
    ratio = low
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if (1 - ratio ** (old // 2)) / (1 - ratio) > new // 2 else (ratio, high)
    beside = np.cumsum(ratio ** np.arange(old // 2))
    offsets = np.concatenate([-beside[::-1], [0.0], beside])
    wanted = np.arange(new) - new // 2
    return np.stack([np.interp(wanted, offsets, cell) for cell in np.eye(old)], -1).astype(np.float32)


# Bits of a position that are multiplied at a time.
_DIGIT = 11


def rotation(positions: jax.Array, frequencies: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of ``positions * frequencies``, within 1e-4 at every int32 position, negative ones included.

    A float32 product has 24 bits: at position 2^24 none is left for the fraction of a turn. Angles are therefore
    integers in units of 2^-32 turns, whose overflow drops whole turns. A position is split into three digits of 11
    bits, each with its own rounded multiple of the frequency: an error of up to 3 * 2^11 / 2 units, 5e-6.

    Args:
      positions: (...), integers; other dtypes are multiplied in float32.
      frequencies: radians per position, (pairs,) float64.

    Returns:
      Two arrays (..., pairs), float32.
    """
    positions = positions[..., None]
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        angle = positions.astype(jnp.float32) * frequencies.astype(np.float32)
        return jnp.cos(angle), jnp.sin(angle)
    rest, phase = positions.astype(jnp.int32), jnp.int32(0)
    for shift in (0, _DIGIT, 2 * _DIGIT):
        turns = np.asarray(frequencies, np.float64) / (2 * np.pi) * 2.0**shift
        unit = np.round((turns - np.floor(turns)) * 2.0**32).astype(np.uint64).astype(np.uint32).view(np.int32)
        # The last digit keeps the sign.
        digit = rest >> shift if shift == 2 * _DIGIT else (rest >> shift) & (2**_DIGIT - 1)
        phase = phase + digit * unit
    angle = phase.astype(jnp.float32) * np.float32(2 * np.pi / 2**32)
    return jnp.cos(angle), jnp.sin(angle)


@dataclasses.dataclass(frozen=True)
class Rotary:
    """A rotary embedding and its options: RoFormer (Su et al., 2021, arXiv:2104.09864), eq. 34. Pairs of features are
    rotated by angles proportional to position.

    Attributes:
      base: the longest wavelength is 2 pi times this.
      dimensions: number of leading features of a head that are rotated; None for all (GPT-NeoX rotates a quarter).
      endpoint: frequencies end at exactly 1 / base, as in the code of RetNet (Sun et al., 2023); otherwise the pair
        after the last one would have 1 / base.
      interleaved: pairs are neighboring features (0, 1), (2, 3), ...; otherwise feature i is paired with i + half.
      factor: angles are divided by it (position interpolation, Chen et al., 2023, arXiv:2306.15595).
      original_length: if given, ``factor`` depends on the pair, as in Llama 3.1: pairs with fewer than ``low_turns``
        turns within this number of tokens are divided by it, those with more than ``high_turns`` are not, and the
        frequencies of those between are interpolated linearly in the number of turns.
      low_turns, high_turns: see ``original_length``.
      grid: rows and columns of a reference grid, usually that of pre-training, to which the positions of images with
        another grid are rescaled (EVA-02, Fang et al., 2023, arXiv:2303.11331); None uses rows and columns directly.
    """

    base: float = 10000.0
    dimensions: int | None = None
    interleaved: bool = False
    factor: float = 1.0
    original_length: int | None = None
    low_turns: float = 1.0
    high_turns: float = 4.0
    grid: tuple[int, int] | None = None
    endpoint: bool = False

    @classmethod
    def of(cls, given: Rotary | Mapping[str, Any] | float | None) -> Rotary | None:
        """The embedding of a base or of a mapping of options; None stays None, and a :class:`Rotary` is returned
        unchanged.
        """
        if given is None or isinstance(given, Rotary):
            return given
        return cls(**given) if isinstance(given, Mapping) else cls(float(given))

    def frequencies(self, pairs: int) -> np.ndarray:
        """Radians per position of each pair: (pairs,) float64, decreasing."""
        steps = max(pairs - 1, 1) if self.endpoint else pairs
        plain = float(self.base) ** (-np.arange(pairs, dtype=np.float64) / steps)
        if self.original_length is None:
            return plain / self.factor
        turns = plain * self.original_length / (2 * np.pi)
        kept = np.clip((turns - self.low_turns) / (self.high_turns - self.low_turns), 0, 1)
        return plain * (kept + (1 - kept) / self.factor)

    def __call__(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Rotates the features of ``x``; returns its shape and dtype.

        Args:
          x: (batch, length, heads, head_dim).
          positions: (batch or 1, length), or (batch or 1, length, axes): the features are then divided evenly between
            the axes (2-D rotary embedding for grids).

        Raises:
          ValueError: the rotated features can't be divided into pairs for each axis.
        """
        dimensions = x.shape[-1] if self.dimensions is None else self.dimensions
        positions = positions[..., None] if positions.ndim == 2 else positions
        axes = positions.shape[-1]
        if dimensions % (2 * axes):
            raise ValueError(
                f"rotary embedding over {axes} axes needs a number of features divisible by {2 * axes}, got "
                f"{dimensions}"
            )
        pairs = dimensions // (2 * axes)
        cos, sin = (
            a.reshape(*positions.shape[:2], 1, axes * pairs) for a in rotation(positions, self.frequencies(pairs))
        )
        turned, rest = x[..., :dimensions].astype(jnp.float32), x[..., dimensions:]
        a, b = (turned[..., ::2], turned[..., 1::2]) if self.interleaved else jnp.split(turned, 2, axis=-1)
        parts = (a * cos - b * sin, b * cos + a * sin)
        turned = jnp.stack(parts, -1).reshape(turned.shape) if self.interleaved else jnp.concatenate(parts, -1)
        return jnp.concatenate([turned.astype(x.dtype), rest], -1)


def rotate(x: jax.Array, positions: jax.Array, **options: Any) -> jax.Array:
    """``x`` rotated by a :class:`Rotary` with ``options``; ``x`` and ``positions`` as there."""
    return Rotary(**options)(x, positions)


class LearnedPositions(Module):
    """A learned vector for each cell of a grid, resampled for inputs with another grid."""

    undecayed = ("table",)

    def __init__(
        self,
        grid: tuple[int, int],
        features: int,
        *,
        antialias: bool = True,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        grid: rows and columns of the table.
        antialias: as in :func:`resample_table`.
        """
        self.table = nnx.Param(truncated_normal(0.02)(rngs.params(), (*grid, features), param_dtype))
        self.antialias = antialias

    def __call__(self, grid: tuple[int, int]) -> jax.Array:
        """The table for ``grid``: (height, width, features)."""
        return self.resampled(self.table[...], grid)

    def resampled(self, table: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Resamples such a table to another grid."""
        return resample_table(table, grid, antialias=self.antialias)


class FixedPositions(Module):
    """The vectors of :func:`sincos_table` for any grid."""

    def __init__(self, features: int):
        self.features = features

    def __call__(self, grid: tuple[int, int]) -> jax.Array:
        """The table for ``grid``: (height, width, features)."""
        return jnp.asarray(sincos_table(grid, self.features))


class RelativePositionBias(Module):
    """A learned bias for every offset within a window, per head: ``table[row_q - row_k, column_q - column_k]``.

    Swin Transformer (Liu et al., 2021, arXiv:2103.14030), eq. 4. The table is (2 height - 1, 2 width - 1, heads).
    """

    undecayed = ("table",)

    def __init__(self, window: tuple[int, int], num_heads: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        """Args:
        window: rows and columns of the window.
        num_heads: number of heads.
        """
        shape = (2 * window[0] - 1, 2 * window[1] - 1, num_heads)
        self.table = nnx.Param(truncated_normal(0.02)(rngs.params(), shape, param_dtype))
        self.window = (window[0], window[1])

    def resampled(self, table: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """Resamples such a table to another window's shape."""
        return resample_offsets(table, shape)

    def __call__(self, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
        """Biases (1, heads, height * width, height * width) of a whole window in row-major order.

        Raises:
          ValueError: the number of tokens is not the window's.
        """
        return _by_offset(self.table[...], self.window, query_positions, key_positions)


class ContinuousPositionBias(Module):
    """A bias for every offset within a window, per head, computed by an MLP from the offset: 16 sigmoid(W2 relu(W1 d +
    b)).

    Swin Transformer V2 (Liu et al., 2022, arXiv:2111.09883), eq. 3 and 4: d is the offset in rows and columns on a
    logarithmic scale, sign(o) log2(1 + 8 |o| / (side - 1)) / 3, where side is that of the pre-training window, so that
    the weights transfer to other windows. Parameters: ``offset_up``, ``offset_down`` (linear).
    """

    undecayed = ("offset_up", "offset_down")

    def __init__(
        self,
        window: tuple[int, int],
        num_heads: int,
        *,
        pretrained_window: tuple[int, int] | None = None,
        hidden: int = 512,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        window: rows and columns of the window.
        num_heads: number of heads.
        pretrained_window: the window of pre-training, whose side scales the offsets; None for ``window``.
        hidden: hidden features of the MLP.
        """
        common: dict[str, Any] = {"kernel_init": truncated_normal(0.02), "param_dtype": param_dtype, "rngs": rngs}
        self.offset_up = Linear(2, hidden, **common)
        self.offset_down = Linear(hidden, num_heads, use_bias=False, **common)
        trained = pretrained_window or window
        self.window, self.pretrained_window = (window[0], window[1]), (trained[0], trained[1])

    def __call__(self, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
        """As :meth:`RelativePositionBias.__call__`."""
        table = self.offset_down(
            jax.nn.relu(self.offset_up(jnp.asarray(log_offsets(self.window, self.pretrained_window))))
        )
        return _by_offset(16 * jax.nn.sigmoid(table.astype(jnp.float32)), self.window, query_positions, key_positions)


def log_offsets(window: tuple[int, int], pretrained_window: tuple[int, int]) -> np.ndarray:
    """The offsets within a window on the scale of :class:`ContinuousPositionBias`: (2 height - 1, 2 width - 1, 2)
    float32.
    """
    sides = [
        8 * np.arange(1 - side, side, dtype=np.float32) / max(first - 1, 1)
        for side, first in zip(window, pretrained_window, strict=True)
    ]
    offsets = np.stack(np.meshgrid(*sides, indexing="ij"), -1)
    return (np.sign(offsets) * np.log2(np.abs(offsets) + 1) / np.float32(3)).astype(np.float32)


def _by_offset(
    table: jax.Array, window: tuple[int, int], query_positions: jax.Array, key_positions: jax.Array
) -> jax.Array:
    """Biases (1, heads, tokens, tokens) of a row-major window, from a table (2 height - 1, 2 width - 1, heads)."""
    height, width = window
    if query_positions.shape[1] != height * width or key_positions.shape[1] != height * width:
        raise ValueError(
            f"a relative bias of a {height}x{width} window got {query_positions.shape[1]} queries and "
            f"{key_positions.shape[1]} keys"
        )
    cells = grid_positions(height, width)
    offset = cells[:, None] - cells[None] + np.array([height - 1, width - 1])
    return jnp.transpose(table[offset[..., 0], offset[..., 1]], (2, 0, 1))[None]
