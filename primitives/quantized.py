"""Quantized weights: arrays stored in fewer bits than they are computed in, and products with them.

    int8       w = scale * values: symmetric, values in -127..127, scale = max |w| / 127 over the inputs of an output,
               in float32, so that no weight changes by more than scale / 2
    bfloat16   w in 8 significant bits, stored as the upper half of a float32 (uint16)

On CPU a product reads a float32 copy of the array if there is one (:meth:`QuantizedArray.with_copy`). Otherwise it
converts one block of the weights at a time to float32, which stays in the cache, and multiplies by it. XLA on its own
converts numbers one by one inside a product of few rows, or writes a float32 copy of the matrix at each call: for one
row and matrices of 768x3072 this took 5 times as long as float32 matrices. Blocks of int8 are faster than float32 for
one row and slower for the many rows of a prompt: docs/speed.md has the results of ``python -m benchmarks.quantization``
for whole models. CPU compilers also convert bfloat16 slowly if they know the dtype, which is why its bits are stored.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 1 << 16
"""Numbers converted at a time on CPU: in float32 a quarter of a megabyte."""
_DEEP = 256
"""Inputs of a block for many rows: with fewer, accumulating the (rows, outputs) sums takes longer than the products."""

FORMATS = ("int8", "bfloat16")


@jax.tree_util.register_pytree_with_keys_class
class QuantizedArray:
    """A floating-point array of two or more axes in one of :data:`FORMATS`; indexing or converting it gives a
    floating-point array.

    Attributes:
      values: int8, or the bits of bfloat16 as uint16; of the array's shape.
      scale: float32, of the array's shape but 1 along the axis of inputs; None for bfloat16.
      dtype: dtype of the original array, which indexing gives back.
      copy: the array in float32, which is then read instead, or None. It is not saved in files.
    """

    def __init__(self, values: Any, scale: Any, dtype: Any, copy: Any = None):
        self.values, self.scale, self.dtype, self.copy = values, scale, jnp.dtype(dtype), copy

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], Any]:
        names = ("values", "scale", "copy")
        return tuple((jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names), self.dtype

    @classmethod
    def tree_unflatten(cls, dtype: Any, children: Any) -> QuantizedArray:
        made = object.__new__(cls)
        (made.values, made.scale, made.copy), made.dtype = children, dtype
        return made

    @property
    def format(self) -> str:
        return "bfloat16" if self.scale is None else "int8"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(self.values.size)

    @property
    def nbytes(self) -> int:
        """Bytes of the values and the scale, without the copy."""
        return sum(part.size * part.dtype.itemsize for part in (self.values, self.scale) if part is not None)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"QuantizedArray({self.format}, {self.shape}, for {self.dtype})"

    def astype(self, dtype: Any) -> jax.Array:
        """The dequantized array in ``dtype``."""
        return self._wide().astype(dtype)

    def with_copy(self) -> QuantizedArray:
        """The same array with a float32 copy beside it."""
        return QuantizedArray(self.values, self.scale, self.dtype, self._wide())

    def without_copy(self) -> QuantizedArray:
        """The same array without the float32 copy."""
        return QuantizedArray(self.values, self.scale, self.dtype)

    def _wide(self) -> jax.Array:
        if self.copy is not None:
            return self.copy
        wide = _widened(self.values)
        return wide if self.scale is None else wide * self.scale

    def __getitem__(self, index: Any) -> jax.Array:
        whole = self.astype(self.dtype)
        return whole if index is Ellipsis else whole[index]

    def __jax_array__(self) -> jax.Array:
        return self.astype(self.dtype)

    def product(self, x: jax.Array) -> jax.Array:
        """``x @ self`` for rows ``x`` (rows, inputs) and a matrix (inputs, outputs) with a scale of the outputs:
        float32 (rows, outputs).
        """
        if self.copy is not None:
            return x.astype(jnp.float32) @ self.copy
        y = _product(x, self.values)
        return y if self.scale is None else y * self.scale

    def products_with_rows(self, x: jax.Array) -> jax.Array:
        """``x @ self.T`` for rows ``x`` (rows, features) and a table (entries, features) with a scale of the entries:
        float32 (rows, entries).
        """
        if self.copy is not None:
            return jnp.einsum("rd,nd->rn", x.astype(jnp.float32), self.copy)
        y = _products_with_rows(x, self.values)
        return y if self.scale is None else y * self.scale[:, 0]

    def rows(self, indices: jax.Array, dtype: Any, mode: str) -> jax.Array:
        """The entries of a table (entries, features) at ``indices``; ``mode`` as in ``jnp.take``."""
        if self.copy is not None:
            return jnp.take(self.copy, indices, axis=0, mode=mode).astype(dtype)
        # Integers can't be NaN, but the scale of an index beyond the table is.
        found = _widened(jnp.take(self.values, indices, axis=0, mode="clip"))
        if self.scale is not None:
            return (found * jnp.take(self.scale, indices, axis=0, mode=mode)).astype(dtype)
        if mode == "fill":
            entries = self.shape[0]
            found = jnp.where(((indices >= -entries) & (indices < entries))[..., None], found, jnp.nan)
        return found.astype(dtype)


def quantized(weights: jax.Array, format: str, axis: int = -2) -> QuantizedArray:
    """Quantizes ``weights``, which must be :func:`finite`, to ``format``, with one scale for values along ``axis``."""
    values, scale = _quantized(weights, format, axis)
    return QuantizedArray(values, scale, weights.dtype)


@jax.jit
def finite(weights: jax.Array) -> jax.Array:
    """Whether all ``weights`` are finite in float32."""
    return jnp.isfinite(jnp.abs(weights).max().astype(jnp.float32))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _quantized(weights: jax.Array, format: str, axis: int) -> tuple[jax.Array, jax.Array | None]:
    if format == "bfloat16":
        return lax.bitcast_convert_type(weights.astype(jnp.bfloat16), jnp.uint16), None
    wide = weights.astype(jnp.float32)
    largest = jnp.abs(wide).max(axis, keepdims=True)
    scale = jnp.where(largest == 0, 1.0, largest / 127)
    return jnp.clip(jnp.round(wide / scale), -127, 127).astype(jnp.int8), scale


def _widened(values: jax.Array) -> jax.Array:
    """Converts int8, or the bits of bfloat16, to float32."""
    if values.dtype == jnp.uint16:
        return lax.bitcast_convert_type(values.astype(jnp.uint32) << 16, jnp.float32)
    return values.astype(jnp.float32)


def _narrow(values: jax.Array, dtype: Any) -> jax.Array:
    """Converts to ``dtype`` without going through float32: integers up to 127 are exact in bfloat16 too."""
    return (lax.bitcast_convert_type(values, jnp.bfloat16) if values.dtype == jnp.uint16 else values).astype(dtype)


def _multiplied(x: jax.Array, values: jax.Array, axis: int) -> jax.Array:
    """The product over the last axis of x and ``axis`` of the values, in whatever form the compiler chooses."""
    dimensions = (((1,), (axis,)), ((), ()))
    return lax.dot_general(x, _narrow(values, x.dtype), dimensions, preferred_element_type=jnp.float32)


@jax.jit
def _product(x: jax.Array, values: jax.Array) -> jax.Array:
    inputs, outputs = values.shape
    deep = min(8 * x.shape[0], _DEEP) if isinstance(x.shape[0], int) else 1  # it may be symbolic
    size = max(1, min(max(BLOCK // outputs, deep), inputs // 2))

    def in_blocks(x: jax.Array, values: jax.Array) -> jax.Array:
        x, rows = x.astype(jnp.float32), x.shape[0]  # not len(x): it may be symbolic
        blocks = -(-inputs // size)
        whole = (blocks - 1) * size
        # The last block overlaps the one before: the inputs that are counted already are set to zero.
        last = jnp.where(jnp.arange(inputs - size, inputs) < whole, 0.0, x[:, inputs - size :])
        parts = jnp.concatenate([x[:, :whole].reshape(rows, blocks - 1, size), last[:, None]], 1).swapaxes(0, 1)

        @jax.checkpoint
        def step(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            columns, i = part
            block = lax.dynamic_slice_in_dim(values, jnp.minimum(i * size, inputs - size), size)
            return total + columns @ _widened(block), None

        zeros = jnp.zeros((rows, outputs), jnp.float32)
        return lax.scan(step, zeros, (parts, jnp.arange(blocks)))[0]

    return lax.platform_dependent(x, values, cpu=in_blocks, default=lambda x, values: _multiplied(x, values, 0))


@jax.jit
def _products_with_rows(x: jax.Array, values: jax.Array) -> jax.Array:
    entries, features = values.shape
    size = max(1, min(BLOCK // features, entries // 2))

    def in_blocks(x: jax.Array, values: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)

        @jax.checkpoint
        def step(found: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            first = jnp.minimum(i * size, entries - size)  # some entries of the last block are computed twice
            block = _widened(lax.dynamic_slice_in_dim(values, first, size))
            return lax.dynamic_update_slice_in_dim(found, jnp.einsum("rd,nd->rn", x, block), first, 1), None

        zeros = jnp.zeros((x.shape[0], entries), jnp.float32)
        return lax.scan(step, zeros, jnp.arange(-(-entries // size)))[0]

    return lax.platform_dependent(x, values, cpu=in_blocks, default=lambda x, values: _multiplied(x, values, 1))
