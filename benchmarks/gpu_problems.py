"""The problems that :mod:`benchmarks.gpu` times: the shapes of published tables, with the least work that each op
needs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from pallas_kernels.attention.blocks import band_seen
from pallas_kernels.neighborhood_attention import grid_of


@dataclasses.dataclass(frozen=True)
class Problem:
    """A call of an op.

    Attributes:
      op: its name.
      name: unique within the op.
      batch: batch size for timing; correctness is checked with a batch of 1.
      shapes: of the arrays by name, without the batch.
      options: of the op.
      flops: of its matrix products, for the whole batch, forward.
      exponentials: number of exponentials, likewise.
      bytes: of inputs and outputs, counted once each.
      gradient_factor: products and exponentials of outputs with all gradients, divided by those of the outputs.
    """

    op: str
    name: str
    batch: int
    shapes: dict[str, tuple[int, ...]]
    options: dict[str, Any]
    flops: float
    exponentials: float
    bytes: float
    gradient_factor: float

    def arrays(self, batch: int) -> dict[str, np.ndarray]:
        """Random float32 inputs."""
        rng = np.random.default_rng(0)
        made = {}
        for name, shape in self.shapes.items():
            x = rng.standard_normal(shape if name == "A" else (batch, *shape), np.float32)
            if name == "decay":
                x = -np.abs(x) * np.float32(0.05)
            elif name == "A":
                x = -np.exp(x)
            elif name == "delta":
                x = np.log1p(np.exp(x - 3))
            elif name == "beta":
                x = 1 / (1 + np.exp(-x))
            elif name == "k" and self.op == "delta_rule":
                x /= np.linalg.norm(x, axis=-1, keepdims=True)
            made[name] = x
        return made


def attention(
    name: str, batch: int, length: int, heads: int, head_dim: int, kv_heads: int | None = None, **options: Any
) -> Problem:
    """Two products per visible pair forward; 3.5 times as much with the gradients, which recompute the logits."""
    left, right = options.get("window", (None, None))
    right = 0 if options.get("causal") else right
    queries, _ = band_seen(left, right, length, length)
    at = np.arange(length)
    first = np.zeros(length) if left is None else np.maximum(at - left, 0)
    last = np.full(length, length - 1) if right is None else np.minimum(at + right, length - 1)
    pairs = float(np.where(queries, last - first + 1, 0).sum())
    keys = (length, kv_heads or heads, head_dim)
    shapes = {"q": (length, heads, head_dim), "k": keys, "v": keys}
    moved = 2 * batch * (2 * math.prod(shapes["q"]) + 2 * math.prod(keys))
    return Problem(
        "attention",
        name,
        batch,
        shapes,
        options,
        4 * batch * heads * pairs * head_dim,
        batch * heads * pairs,
        moved,
        3.5,
    )


def neighborhood(name: str, batch: int, grid: tuple[int, ...], heads: int, head_dim: int, **options: Any) -> Problem:
    """As :func:`attention`, for the pairs of each query and the keys of its window."""
    axes = grid_of(grid, **options)
    pairs = math.prod(float((axis.keys >= 0).sum()) for axis in axes)
    shapes = dict.fromkeys("qkv", (*grid, heads, head_dim))
    return Problem(
        "neighborhood_attention",
        name,
        batch,
        shapes,
        options,
        4 * batch * heads * pairs * head_dim,
        batch * heads * pairs,
        2 * batch * 4 * math.prod(shapes["q"]),
        3.5,
    )


def recurrence(
    op: str, name: str, batch: int, length: int, heads: int, size: int, decay: tuple[int, ...] | None
) -> Problem:
    """A state of size x size is read and written at least once per token: the bytes nearly always set the floor."""
    shapes: dict[str, tuple[int, ...]] = {
        "q": (length, heads, size),
        "k": (length, heads, size),
        "v": (length, heads, size),
    }
    if decay is not None:
        shapes["decay"] = (length, heads, *decay)
    if op == "delta_rule":
        shapes["beta"] = (length, heads)
    wide = sum(math.prod(shape) for name, shape in shapes.items() if name in ("decay", "beta"))
    moved = batch * (2 * 4 * length * heads * size + 4 * wide)
    products = 4 if op == "linear_attention" else 6
    return Problem(op, name, batch, shapes, {}, products * batch * length * heads * size * size, 0.0, moved, 3.0)


def scan(name: str, batch: int, length: int, channels: int, states: int) -> Problem:
    """One exponential for each token, channel and state; two with the gradient, which recomputes the states."""
    wide, thin = (length, channels), (length, states)
    shapes = {"x": wide, "delta": wide, "A": (channels, states), "B": thin, "C": thin}
    moved = 4 * batch * (3 * math.prod(wide) + 2 * math.prod(thin))
    return Problem(
        "selective_scan", name, batch, shapes, {}, 0.0, float(batch * length * channels * states), moved, 2.0
    )


def problems(dry: bool) -> tuple[Problem, ...]:
    """All problems; with ``dry`` tiny ones."""
    if dry:
        return (
            attention("window", 1, 32, 2, 16, causal=True, window=(7, None)),
            recurrence("linear_attention", "retention", 1, 32, 2, 8, ()),
            recurrence("delta_rule", "gated", 1, 32, 2, 8, ()),
            scan("mamba", 1, 32, 8, 4),
            neighborhood("map", 1, (6, 8), 2, 16, kernel_size=3, stride=(2, 1)),
        )
    return (
        attention("dense_4k", 4, 4096, 16, 128),
        attention("causal_4k", 4, 4096, 16, 128, causal=True),
        attention("causal_16k_grouped", 1, 16384, 32, 128, 8, causal=True),
        attention("dense_4k_64", 4, 4096, 32, 64),
        attention("window_2k_of_32k", 1, 32768, 16, 128, causal=True, window=(2047, None)),
        attention("window_8k_of_32k", 1, 32768, 16, 128, causal=True, window=(8191, None)),
        attention("image_windows", 4096, 49, 4, 32),
        recurrence("linear_attention", "plain_8k", 1, 8192, 96, 128, None),
        recurrence("linear_attention", "retention_8k", 1, 8192, 96, 128, ()),
        recurrence("linear_attention", "gla_8k", 1, 8192, 96, 128, (128,)),
        recurrence("delta_rule", "plain_8k", 1, 8192, 96, 128, None),
        recurrence("delta_rule", "gated_8k", 1, 8192, 96, 128, ()),
        scan("mamba_2k", 8, 2048, 2048, 16),
        # Part of a video, without strides and with those at which no block is cut: as large as XLA's form, which copies
        # the keys of each tile, can check in float64.
        neighborhood("video", 4, (16, 32, 32), 4, 128, kernel_size=(8, 24, 24)),
        neighborhood("video_strides", 4, (16, 32, 32), 4, 128, kernel_size=(8, 24, 24), stride=8),
        neighborhood("map", 32, (56, 56), 4, 32, kernel_size=7),
    )
