"""Models as flat dictionaries: dotted parameter names to arrays.

The loop, checkpoints, sharding rules and weight loaders all speak of leaves by these names
(``blocks.3.mixer.query.kernel``), which are the same whether a stack is scanned or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

PERSISTENT = nnx.Any(nnx.Param, nnx.BatchStat)
"""What a checkpoint holds: parameters and statistics, never random keys or constants of the architecture."""


def flatten(model: nnx.Module, *filters: Any) -> dict[str, Any]:
    """Returns ``{dotted name: array}`` of the variables that match any of ``filters`` (default: parameters and
    statistics).

    Under ``nnx.eval_shape`` or ``jax.eval_shape`` the arrays are ``jax.ShapeDtypeStruct``.
    """
    state = nnx.state(model, nnx.Any(*filters) if filters else PERSISTENT)
    return flatten_state(state)


def flatten_state(state: nnx.State) -> dict[str, Any]:
    """``{dotted name: array}`` of an ``nnx.State``."""
    return {".".join(map(str, path)): value for path, value in nnx.to_flat_state(nnx.as_pure(state))}


def assign(model: nnx.Module, arrays: Mapping[str, Any]) -> None:
    """Writes ``arrays`` into the variables of those names.

    Raises:
      ValueError: a name the model does not have, or another shape; the model is left unchanged.
    """
    variables = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(model))}
    unknown = sorted(set(arrays) - set(variables))
    if unknown:
        raise ValueError(f"the model has no variables named: {', '.join(unknown)}")
    wrong = [
        f"{n} is {arrays[n].shape}, expected {variables[n].shape}"
        for n in arrays
        if tuple(arrays[n].shape) != tuple(variables[n].shape)
    ]
    if wrong:
        raise ValueError("arrays of the wrong shape: " + "; ".join(wrong))
    graph = {".".join(map(str, path)): node for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Variable)}
    for name, value in arrays.items():
        graph[name].set_value(value)


def parameter_count(model: nnx.Module) -> int:
    """Number of parameters (statistics are not parameters); works on abstract models too."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
