"""Linear layers, convolution and embedding, with their products in the forms that compilers handle well.

For inputs with several row axes, XLA's CPU compiler copies transposes of input and gradient before the product that
gives the kernel's gradient; with one row axis it needs no copies (MaxViT's gradient: 1.4 times as fast). In jax 0.12 it
also accumulates such a product of bfloat16 in bfloat16, which loses a part of the sum; with one row axis it does not.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype

from layers.broadcast import lookup, widened
from layers.initializers import InitializerSpec, create_initializer, lecun_normal, variance_scaling, zeros
from layers.module import Module
from layers.quantized import held
from primitives import sequence


def _promoted(arrays: tuple[Any, ...], *, dtype: Any = None, inexact: bool = True) -> tuple[Any, ...]:
    """Inputs and kernel in the compute dtype; the bias, which rows share, in float32: see :mod:`layers.broadcast`."""
    *operands, bias = arrays
    return *promote_dtype(tuple(operands), dtype=dtype, inexact=inexact), None if bias is None else widened(bias)


def multiplied(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``x @ kernel`` for any number of row axes: (..., inputs) and (inputs, outputs) to (..., outputs)."""
    # Rows and tokens that are both split over devices can't become one axis without being gathered.
    if x.ndim < 3 or sequence.is_split():
        return x @ kernel
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


class Linear(nnx.Linear):
    """``nnx.Linear`` with the same parameters and outputs, whose bias gradient is summed in float32."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_init: InitializerSpec = lecun_normal,
        bias_init: InitializerSpec = zeros,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        """Further options are those of ``nnx.Linear``."""
        inits: dict[str, Any] = {
            "kernel_init": create_initializer(kernel_init),
            "bias_init": create_initializer(bias_init),
            "promote_dtype": _promoted,
        }
        super().__init__(in_features, out_features, rngs=rngs, **inits, **options)

    def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """Maps (..., in_features) to (..., out_features)."""
        dtype = self.dtype or jnp.promote_types(inputs.dtype, self.kernel.dtype)
        if (kernel := held(self.kernel)) is not None:
            y = kernel.product(inputs.reshape(-1, inputs.shape[-1]).astype(dtype))
            y = y if self.bias is None else y + widened(self.bias[...])
            return y.astype(dtype).reshape(*inputs.shape[:-1], -1)
        # Rows and tokens that are both split over devices can't become one axis without being gathered.
        if inputs.ndim < 3 or args or kwargs or sequence.is_split():
            return super().__call__(inputs, *args, **kwargs).astype(dtype)
        return super().__call__(inputs.reshape(-1, inputs.shape[-1])).astype(dtype).reshape(*inputs.shape[:-1], -1)

    def matrix(self, dtype: Any) -> jax.Array:
        """The weight matrix (in_features, out_features) in ``dtype``, for products in another order."""
        return self.kernel[...].astype(dtype)


class BlockLinear(Module):
    """A linear layer with a block-diagonal matrix of ``blocks`` equal blocks.

    Parameters ``kernel`` (blocks, features / blocks, out_features / blocks) and, with ``use_bias``, ``bias``
    (out_features,). ``out_features`` defaults to ``features``.
    """

    def __init__(
        self,
        features: int,
        blocks: int,
        *,
        out_features: int | None = None,
        use_bias: bool = True,
        kernel_init: InitializerSpec | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Raises ValueError if the number of blocks does not divide the features."""
        out_features = out_features or features
        if features % blocks or out_features % blocks:
            odd = features if features % blocks else out_features
            raise ValueError(f"BlockLinear: {odd} features can't be split into {blocks} equal blocks")
        # The fan-in of an output is one block's inputs, but the initializer counts the inputs of all blocks.
        init = create_initializer(kernel_init or variance_scaling(float(blocks), "fan_in", "normal"))
        shape = (blocks, features // blocks, out_features // blocks)
        self.kernel = nnx.Param(init(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(zeros(rngs.params(), (out_features,), param_dtype)) if use_bias else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., features) to (..., out_features)."""
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = _promoted((x, self.kernel[...], bias), dtype=self.dtype)
        parts = x.reshape(*x.shape[:-1], len(kernel), -1)
        y = jnp.einsum("...ni,nio->...no", parts, kernel).reshape(*x.shape[:-1], -1)
        return y if bias is None else (y + bias).astype(x.dtype)


class Conv(nnx.Conv):
    """``nnx.Conv`` with the same parameters and outputs, whose bias gradient is summed in float32."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Any,
        *,
        kernel_init: InitializerSpec = lecun_normal,
        bias_init: InitializerSpec = zeros,
        **options: Any,
    ):
        """Further options are those of ``nnx.Conv``."""
        inits: dict[str, Any] = {
            "kernel_init": create_initializer(kernel_init),
            "bias_init": create_initializer(bias_init),
            "promote_dtype": _promoted,
        }
        super().__init__(in_features, out_features, kernel_size, **inits, **options)

    def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """Maps (batch, height, width, in_features) to (batch, height', width', out_features)."""
        return (
            super()
            .__call__(inputs, *args, **kwargs)
            .astype(self.dtype or jnp.promote_types(inputs.dtype, self.kernel.dtype))
        )


class Embed(nnx.Embed):
    """``nnx.Embed`` with the same parameters and outputs, whose lookup gradient is summed in float32."""

    def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """Maps integer token ids (...) to their embeddings (..., features).

        Raises:
          ValueError: an empty array, ids that are not integers, or an id outside the table. Inside ``jit``, where ids
            are not known, the embedding of such an id is NaN.
        """
        self._check(inputs)
        if (table := held(self.embedding)) is not None:
            return table.rows(inputs, self.dtype or table.dtype, "fill")
        return lookup(self.embedding[...], inputs, self.dtype or self.embedding.dtype, beyond="fill")

    def _check(self, tokens: jax.Array) -> None:
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens are integers, the rows of a table; got {tokens.dtype}")
        if 0 in tokens.shape:
            raise ValueError(f"there are no tokens: their shape is {tokens.shape}")
        if isinstance(tokens, jax.core.Tracer) or not getattr(tokens, "is_fully_addressable", True):
            return
        found = np.atleast_2d(np.asarray(tokens))
        size = self.embedding.shape[0]
        beyond = np.argwhere((found < 0) | (found >= size))
        if len(beyond):
            *row, place = beyond[0]
            where = f"row {', '.join(map(str, row))}, place {place}"
            raise ValueError(
                f"token {found[tuple(beyond[0])]} in {where}: the table has {size} entries, 0 to {size - 1}; is it the "
                f"model's own tokenizer?"
            )

    def attend(self, query: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """Maps (..., features) to logits (..., num_embeddings): dot products with every embedding."""
        if args or kwargs:
            return super().attend(query, *args, **kwargs)
        if (rows := held(self.embedding)) is not None:
            dtype = self.dtype or jnp.promote_types(query.dtype, rows.dtype)
            logits = rows.products_with_rows(query.reshape(-1, query.shape[-1]).astype(dtype))
            return logits.astype(dtype).reshape(*query.shape[:-1], -1)
        # No table.T: for a single token, XLA's newest CPU compiler would copy the transposed table first.
        query, table = self.promote_dtype((query, self.embedding[...]), dtype=self.dtype)
        return jnp.einsum("...d,vd->...v", query, table)


def linear_matrices(model: nnx.Module) -> set[str]:
    """Names of the matrix parameters of the linear layers of ``model``: kernels, and the factors of adapters."""
    return {
        ".".join(map(str, (*path, name)))
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Linear)
        for name, value in vars(module).items()
        if isinstance(value, nnx.Param) and value.ndim == 2
    }
