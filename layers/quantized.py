"""Quantized parameters: which parameters are quantized, and how a layer holds them.

A kernel or table becomes a :class:`Quantized` variable in the same place. Indexing it, as every layer does to read its
parameters, dequantizes it; :class:`layers.linear.Linear` and :class:`layers.linear.Embed` multiply by it directly.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from layers.module import Quantized
from layers.state import flatten
from primitives.quantized import QuantizedArray

LEAST = 32
"""Minimum number of values that share a scale: with fewer, the scale takes too large a part of the memory."""

_AXES = {"kernel": -2, "embedding": -1}


def axis_of(name: str, leaf: Any) -> int | None:
    """The axis of a parameter along which values share a scale; None if the parameter is not quantized.

    It is the input axis of a ``kernel`` (..., inputs, outputs), of linear layers, block-diagonal ones and convolutions,
    and the feature axis of an ``embedding`` (entries, features), if it has at least :data:`LEAST` entries. So norms,
    biases, decays, position tables, depth-wise kernels and first layers on pixels are not quantized.
    """
    axis = _AXES.get(name.rpartition(".")[2])
    if axis is None or leaf.ndim < 2 or leaf.shape[axis] < LEAST or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return None
    return axis


def hold(module: Any, name: str, array: QuantizedArray) -> None:
    """Replaces the parameter ``name`` of a module by ``array``."""
    setattr(module, name, Quantized(array))


def held(variable: Any) -> QuantizedArray | None:
    """The quantized array that a variable holds, or None."""
    value = variable.get_raw_value()
    return value if isinstance(value, QuantizedArray) else None


def quantized_arrays(model: nnx.Module) -> dict[str, QuantizedArray]:
    """The quantized parameters of a model, by dotted name."""
    return flatten(model, Quantized)


def format_of(model: nnx.Module) -> str | None:
    """ "int8" or "bfloat16"; None for a model without quantized parameters."""
    return next((array.format for array in quantized_arrays(model).values()), None)


def parameters_of(state: nnx.State) -> list[Any]:
    """The parameters in a state; a quantized one counts as one array."""
    found = nnx.filter_state(state, nnx.Any(nnx.Param, Quantized))
    return jax.tree.leaves(found, is_leaf=lambda leaf: isinstance(leaf, QuantizedArray))
