"""Neighborhood attention: each token of a one-, two- or three-dimensional grid attends to the window of tokens around
it.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import Implementation, Later, Op
from pallas_kernels.neighborhood_attention import reference, xla
from pallas_kernels.neighborhood_attention.call import NeighborhoodCall
from pallas_kernels.neighborhood_attention.cases import CASES, SHAPES
from pallas_kernels.neighborhood_attention.geometry import Axis
from pallas_kernels.neighborhood_attention.geometry import speedup as speedup

Border = Literal["shift", "masked"]
Sizes = int | tuple[int, ...]

tpu, gpu = (Later(f"{__name__}.{module}") for module in ("mosaic_tpu", "mosaic_gpu"))
_op = Op(
    "neighborhood_attention",
    (
        Implementation("mosaic_tpu", tpu.attention, platforms=("tpu",), objection=tpu.objection, paper=(218,)),
        Implementation("mosaic_gpu", gpu.attention, platforms=("gpu",), objection=gpu.objection, paper=(218,)),
        Implementation("xla", xla.neighborhood_attention, paper=(218,)),
        Implementation("reference", reference.neighborhood_attention, paper=(218,)),
    ),
    CASES,
    SHAPES,
)


def neighborhood_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    causal: bool | tuple[bool, ...] = False,
    border: Border = "shift",
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Softmax attention of each token to the window around it (arXiv:2204.07143; strides: arXiv:2504.16922).

    The cost is linear in the number of tokens. Sizes are one number for all axes, or a tuple with one for each. On
    TPUs and Hopper GPUs attention's kernels compute it without copies of keys
    (:mod:`pallas_kernels.neighborhood_attention.tiled`); XLA's form, which copies the keys of each tile of queries,
    serves a bias.

    Args:
      q: (batch, *grid, heads, head_dim), with a grid of one to three axes.
      k, v: (batch, *grid, kv_heads, head_dim or value_dim); kv_heads divides heads.
      kernel_size: window size in tokens.
      stride: number of neighboring queries that share the window of the middle one, 1 to kernel_size; with kernel_size
        windows do not overlap.
      dilation: distance between neighboring tokens of a window.
      causal: whether a query attends only to keys up to its own position; one value, or one for each axis.
      border: "shift" moves windows at the border inward, so that every query has equally many keys; "masked" cuts them
        off.
      bias: (heads, *(2 kernel_size - 1)), added to the logits by the offset key - query in steps of the dilation.
        Differentiable. Requires stride 1.
      mask: bool (batch or 1, *grid), True = real. Masked keys may hold anything, including NaN.
      scale: factor of the logits, 1 / sqrt(head_dim) by default.
      implementation: the name of an implementation; None uses the best one that supports the call.

    Returns:
      (batch, *grid, heads, value_dim) in q's dtype; zeros where a query attends to nothing.

    Raises:
      ValueError: shapes or sizes that do not fit together.
    """
    axes = grid_of(q.shape[1:-2], kernel_size, stride, dilation, causal, border)
    if (
        k.shape[:-2] != q.shape[:-2]
        or v.shape[:-1] != k.shape[:-1]
        or k.shape[-1] != q.shape[-1]
        or q.shape[-2] % k.shape[-2]
    ):
        raise ValueError(
            f"neighborhood_attention: q {q.shape}, k {k.shape} and v {v.shape} must agree in batch, grid and head_dim, "
            f"and the heads"
            " of k and v divide those of q"
        )
    offsets = tuple(2 * axis.window - 1 for axis in axes)
    if bias is not None and (bias.shape != (q.shape[-2], *offsets) or any(axis.stride > 1 for axis in axes)):
        raise ValueError(
            f"neighborhood_attention: bias is (heads, *(2 kernel_size - 1)) = {(q.shape[-2], *offsets)} of windows "
            f"with stride 1, got {bias.shape}"
        )
    if mask is not None and (
        mask.dtype != jnp.bool_ or mask.shape[1:] != q.shape[1:-2] or mask.shape[0] not in (1, q.shape[0])
    ):
        raise ValueError(
            f"neighborhood_attention: mask must be bool (batch or 1, *grid) of {q.shape[:-2]}, got "
            f"{mask.dtype}{list(mask.shape)}"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _op(NeighborhoodCall(q, k, v, bias, mask, axes, scale), implementation)[0]


def neighborhood_scores(q: jax.Array, k: jax.Array, **window: Any) -> jax.Array:
    """Unscaled products of each query with the keys of its window: (batch, *grid, heads, neighbors), float32 or wider.

    ``window`` are kernel_size, stride, dilation, causal and border of :func:`neighborhood_attention`; neighbors are in
    row-major order of the window. Missing keys have 0. There are no kernels for this half and the next.

    Raises:
      ValueError: sizes that do not fit the grid.
    """
    return xla.scores(q, k, grid_of(q.shape[1:-2], **window))


def neighborhood_average(weights: jax.Array, v: jax.Array, **window: Any) -> jax.Array:
    """Sums of the values of each query's window with the weights (batch, *grid, heads, neighbors).

    ``window`` as in :func:`neighborhood_scores`. Returns (batch, *grid, heads, value_dim) in v's dtype.

    Raises:
      ValueError: sizes that do not fit the grid.
    """
    axes = grid_of(v.shape[1:-2], **window)
    return xla.average(weights, v, axes).astype(v.dtype)


def grid_of(
    shape: tuple[int, ...],
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    causal: bool | tuple[bool, ...] = False,
    border: Border = "shift",
) -> tuple[Axis, ...]:
    """The axes of a grid with the given shape and windows.

    Raises:
      ValueError: sizes that do not fit the grid.
    """
    if not 1 <= len(shape) <= 3:
        raise ValueError(
            f"neighborhood_attention: arrays are (batch, *grid, heads, features) with one to three axes of the grid, "
            f"here it is {shape}"
        )
    if border not in ("shift", "masked"):
        raise ValueError(f'neighborhood_attention: border is "shift" or "masked", got {border!r}')
    given: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation, "causal": causal}
    each = {name: value if isinstance(value, tuple) else (value,) * len(shape) for name, value in given.items()}
    for name, value in each.items():
        if len(value) != len(shape):
            raise ValueError(
                f"neighborhood_attention: {name} is one number or one for each axis of {shape}, got {value}"
            )
    axes = tuple(
        Axis(length, window, step, apart, only_before, border == "shift")
        for length, window, step, apart, only_before in zip(shape, *each.values(), strict=True)
    )
    for axis in axes:
        if not 1 <= axis.stride <= axis.window or axis.dilation < 1 or axis.window < 1:
            raise ValueError(
                f"neighborhood_attention: of a window of {axis.window} tokens the stride is 1 to as many, and the "
                f"dilation at least 1;"
                f" got {axis.stride} and {axis.dilation}"
            )
        if axis.shifted and axis.window * axis.dilation > axis.length:
            raise ValueError(
                f"neighborhood_attention: a window of {axis.window} tokens, {axis.dilation} apart, is wider than the "
                f"{axis.length} there are:"
                ' take a smaller one, or border="masked"'
            )
    return axes
