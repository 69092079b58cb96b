"""Channel gates by name: modules that map (batch, height, width, features) to the same shape, by factors for each channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from layers.squeeze_excite import SqueezeExcite
from suggestions import unknown

GATES: dict[str, Callable[..., nnx.Module]] = {"squeeze_excite": SqueezeExcite}

Gate = str | Mapping[str, Any] | Callable[..., nnx.Module]
"""A name in :data:`GATES`, ``{"name": ..., **options}``, or a callable ``(features, *, dtype, param_dtype, rngs) -> module``."""


def create_gate(gate: Gate, features: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs) -> nnx.Module:
    """Makes the gate of a map of ``features`` channels.

    Raises:
      ValueError: an unknown name; near ones are given.
    """
    options: dict[str, Any] = {}
    if isinstance(gate, Mapping):
        options = dict(gate)
        gate = options.pop("name", None)
    if not callable(gate):
        if gate not in GATES:
            raise ValueError(unknown("gate", str(gate), GATES))
        gate = GATES[gate]
    return gate(features, dtype=dtype, param_dtype=param_dtype, rngs=rngs, **options)
