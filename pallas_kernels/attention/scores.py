"""A score function and its derivative, for inlining in kernels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.extend.core.primitives import add_jaxvals_p, add_p

from pallas_kernels.attention.masks import Score


def with_slope(score: Score, logits: jax.Array, *where: Any) -> tuple[jax.Array, jax.Array]:
    """``score(logits, *where)`` and its derivative in the logits; since it is elementwise, one forward-mode pass gives
    both.

    The derivative is 0 where the score is minus infinity, as in :func:`finite_gradient`.
    """

    def both(logits: jax.Array, *where: Any) -> tuple[jax.Array, jax.Array]:
        def scored(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(score(x, *where).astype(x.dtype), x.shape)

        return jax.jvp(scored, (logits,), (jnp.ones_like(logits),))

    found, slope = jaxpr_as_fun(_lowered(jax.make_jaxpr(both)(logits, *where)))(logits, *where)
    return found, jnp.where(found == -jnp.inf, 0.0, slope)


def finite_gradient(score: Score) -> Score:
    """``score`` with a derivative of 0 where it is minus infinity: a key with weight 0 has no gradient.

    The score's own derivative may not be finite there (as for the logarithm of 0), and its product with the gradient 0
    would be NaN.
    """

    @jax.custom_jvp
    def scored(logits: jax.Array, where: tuple[Any, ...], rows: tuple[jax.Array, ...]) -> jax.Array:
        return score(logits, *where, *rows)

    @scored.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        logits, where, rows = primals
        found, pushed = jax.linearize(lambda x, rows: score(x, *where, *rows), logits, rows)
        gone = found == -jnp.inf
        # On both sides: forward mode needs the outer where, reverse mode the inner one.
        moved = jax.tree.map(lambda tangent: jnp.where(gone, 0, tangent), (tangents[0], tangents[2]))
        return found, jnp.where(gone, 0, pushed(*moved))

    def function(logits: jax.Array, head: Any, q: Any, k: Any, *rows: jax.Array) -> jax.Array:
        # Rows are broadcast to the logits, so that a non-finite derivative at one key does not reach the others.
        shape = jnp.broadcast_shapes(logits.shape, *(row.shape for row in rows))
        return scored(
            jnp.broadcast_to(logits, shape), (head, q, k), tuple(jnp.broadcast_to(row, shape) for row in rows)
        )

    return function


def _lowered(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The jaxpr with additions of tangents replaced by plain ones, because Mosaic GPU does not support them."""

    def replaced(equation: Any) -> Any:
        params = {name: _lowered(x) if isinstance(x, ClosedJaxpr) else x for name, x in equation.params.items()}
        return equation.replace(
            primitive=add_p if equation.primitive is add_jaxvals_p else equation.primitive, params=params
        )

    return ClosedJaxpr(closed.jaxpr.replace(eqns=[replaced(equation) for equation in closed.jaxpr.eqns]), closed.consts)
