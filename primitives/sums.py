"""Running sums with more digits than their dtype holds."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Pair = tuple[jax.Array, jax.Array]
"""A number as the sum of two: one rounded to the dtype, and the rest, at most half a unit in its last place."""


def add(a: Pair, b: Pair) -> Pair:
    """The sum of two pairs, elementwise (Knuth's two-sum, and the rests added to its error)."""
    total = a[0] + b[0]
    of_b = total - a[0]
    rest = ((a[0] - (total - of_b)) + (b[0] - of_b)) + (a[1] + b[1])
    rounded = total + rest
    return rounded, rest - (rounded - total)


def running(x: jax.Array, axis: int, *, reverse: bool = False) -> Pair:
    """The running sums of ``x`` along ``axis``, each as a pair, from the last element backward if ``reverse``.

    A difference of two of them, ``(a[0] - b[0]) + (a[1] - b[1])``, is as accurate as a sum of its own, however large
    both are. No sum depends on elements that it does not include, in any bit. The rest has no gradient: that of the sum
    is all.
    """
    fixed = jax.lax.stop_gradient(x)
    total, rest = jax.lax.associative_scan(add, (fixed, jnp.zeros_like(fixed)), reverse=reverse, axis=axis)
    slope = jax.lax.cumsum(x, axis=axis, reverse=reverse)
    return total + (slope - jax.lax.stop_gradient(slope)), jax.lax.stop_gradient(rest)
