"""Gates by name: modules that multiply each channel of a map (batch, height, width, features), or each of its
positions, by a factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from layers.efficient_channel_attention import EfficientChannelAttention
from layers.efficient_local_attention import EfficientLocalAttention
from layers.squeeze_excite import SqueezeExcite
from layers.subspace_attention import SubspaceAttention
from suggestions import unknown

GATES: dict[str, Callable[..., nnx.Module]] = {
    "eca": EfficientChannelAttention,
    "ela": EfficientLocalAttention,
    "squeeze_excite": SqueezeExcite,
    "ulsam": SubspaceAttention,
}

Gate = str | Mapping[str, Any] | Callable[..., nnx.Module]
"""A name in :data:`GATES`, ``{"name": ..., **options}``, or a callable that makes a module of ``features`` and
the keywords ``dtype``, ``param_dtype`` and ``rngs``."""


def create_gate(
    gate: Gate, features: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
) -> nnx.Module:
    """Makes the gate of a map of ``features`` channels.

    Raises:
      ValueError: an unknown name; the message suggests similar ones.
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
