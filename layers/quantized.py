"""Parameters kept in fewer bits: which they are, and how a layer holds them.

A kernel or table becomes a :class:`Quantized` variable in the same place. Indexed, as every layer reads its
parameters, it is a floating-point array again; :class:`layers.linear.Linear` and :class:`layers.linear.Embed` multiply
by it without that.
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
"""Numbers that share a scale: with fewer, the scale is no longer small beside them."""

_AXES = {"kernel": -2, "embedding": -1}


def axis_of(name: str, leaf: Any) -> int | None:
    """The axis of a parameter along which numbers share a scale; None where it stays as it is.

    It is that of the inputs of a ``kernel`` (..., inputs, outputs), of linear layers, of blocks of them and of
    convolutions, and that of the features of an ``embedding`` (entries, features), if it is at least :data:`LEAST`
    long. So norms, biases, decays, position tables, taps of depthwise convolutions and first layers on pixels stay.
    """
    axis = _AXES.get(name.rpartition(".")[2])
    if axis is None or leaf.ndim < 2 or leaf.shape[axis] < LEAST or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return None
    return axis


def hold(module: Any, name: str, array: QuantizedArray) -> None:
    """Puts ``array`` in the place of a module's parameter ``name``."""
    setattr(module, name, Quantized(array))


def held(variable: Any) -> QuantizedArray | None:
    """What a variable holds, if it is a quantized array."""
    value = variable.get_raw_value()
    return value if isinstance(value, QuantizedArray) else None


def quantized_arrays(model: nnx.Module) -> dict[str, QuantizedArray]:
    """The quantized parameters of a model, by dotted name."""
    return flatten(model, Quantized)


def format_of(model: nnx.Module) -> str | None:
    """int8 or bfloat16; None for a model whose parameters are all plain."""
    return next((array.format for array in quantized_arrays(model).values()), None)


def parameters_of(state: nnx.State) -> list[Any]:
    """The parameters in a state, a quantized one as one array."""
    found = nnx.filter_state(state, nnx.Any(nnx.Param, Quantized))
    return jax.tree.leaves(found, is_leaf=lambda leaf: isinstance(leaf, QuantizedArray))
