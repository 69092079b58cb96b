"""A score and its slope, as kernels have them inline."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.extend.core.primitives import add_jaxvals_p, add_p

from pallas_kernels.attention.masks import Score


def with_slope(score: Score, logits: jax.Array, *where: Any) -> tuple[jax.Array, jax.Array]:
    """``score(logits, *where)`` and its derivative in the logits: as it is elementwise, forward mode gives all of it at once."""

    def both(logits: jax.Array, *where: Any) -> tuple[jax.Array, jax.Array]:
        def scored(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(score(x, *where).astype(x.dtype), x.shape)

        return jax.jvp(scored, (logits,), (jnp.ones_like(logits),))

    found, slope = jaxpr_as_fun(_lowered(jax.make_jaxpr(both)(logits, *where)))(logits, *where)
    return found, slope


def _lowered(closed: ClosedJaxpr) -> ClosedJaxpr:
    """With plain additions of tangents: Mosaic GPU has no other."""

    def replaced(equation: Any) -> Any:
        params = {name: _lowered(x) if isinstance(x, ClosedJaxpr) else x for name, x in equation.params.items()}
        return equation.replace(primitive=add_p if equation.primitive is add_jaxvals_p else equation.primitive, params=params)

    return ClosedJaxpr(closed.jaxpr.replace(eqns=[replaced(equation) for equation in closed.jaxpr.eqns]), closed.consts)
