"""A score and its slope, as kernels have them inline."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.extend.core.primitives import add_jaxvals_p, add_p

from pallas_kernels.attention.masks import Score


def with_slope(score: Score, logits: jax.Array, *where: Any) -> tuple[jax.Array, jax.Array]:
    """``score(logits, *where)`` and its derivative in the logits: as it is elementwise, forward mode gives all of it at
    once.

    The derivative is 0 where the score is minus infinity, as that of :func:`finite_gradient`.
    """

    def both(logits: jax.Array, *where: Any) -> tuple[jax.Array, jax.Array]:
        def scored(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(score(x, *where).astype(x.dtype), x.shape)

        return jax.jvp(scored, (logits,), (jnp.ones_like(logits),))

    found, slope = jaxpr_as_fun(_lowered(jax.make_jaxpr(both)(logits, *where)))(logits, *where)
    return found, jnp.where(found == -jnp.inf, 0.0, slope)


def finite_gradient(score: Score) -> Score:
    """``score`` with a derivative of 0 where it is minus infinity: a key of no weight has no gradient.

    Its own derivative need not be a number there (that of a logarithm of 0 is not), and the product with the gradient,
    0, would not be one either.
    """

    @jax.custom_jvp
    def scored(logits: jax.Array, where: tuple[Any, ...], rows: tuple[jax.Array, ...]) -> jax.Array:
        return score(logits, *where, *rows)

    @scored.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        logits, where, rows = primals
        found, pushed = jax.linearize(lambda x, rows: score(x, *where, *rows), logits, rows)
        gone = found == -jnp.inf
        # Both sides: forward mode ends with the one, reverse mode with the other.
        moved = jax.tree.map(lambda tangent: jnp.where(gone, 0, tangent), (tangents[0], tangents[2]))
        return found, jnp.where(gone, 0, pushed(*moved))

    def function(logits: jax.Array, head: Any, q: Any, k: Any, *rows: jax.Array) -> jax.Array:
        # Rows as wide as the logits: a number whose derivative is not one must not meet those of other keys.
        shape = jnp.broadcast_shapes(logits.shape, *(row.shape for row in rows))
        return scored(
            jnp.broadcast_to(logits, shape), (head, q, k), tuple(jnp.broadcast_to(row, shape) for row in rows)
        )

    return function


def _lowered(closed: ClosedJaxpr) -> ClosedJaxpr:
    """With plain additions of tangents: Mosaic GPU has no other."""

    def replaced(equation: Any) -> Any:
        params = {name: _lowered(x) if isinstance(x, ClosedJaxpr) else x for name, x in equation.params.items()}
        return equation.replace(
            primitive=add_p if equation.primitive is add_jaxvals_p else equation.primitive, params=params
        )

    return ClosedJaxpr(closed.jaxpr.replace(eqns=[replaced(equation) for equation in closed.jaxpr.eqns]), closed.consts)
