"""Merges partial results of attention over disjoint sets of keys into one softmax, by their log-sum-exp
(arXiv:2310.01889).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Part = tuple[jax.Array, jax.Array]
"""Outputs (..., value_dim), and the log-sum-exp (...) of their logits; minus infinity where there are none."""


def merge(parts: Sequence[Part]) -> Part:
    """Attention over all keys, from the results over disjoint sets of them.

    Where every part is empty the output is 0, and the log-sum-exp minus infinity; both are differentiable everywhere.
    """
    tops = jnp.stack([lse for _, lse in parts])
    top = jax.lax.stop_gradient(jnp.max(tops, 0))
    top = jnp.where(top == -jnp.inf, 0.0, top)
    shares = [jnp.exp(lse - top) for _, lse in parts]
    total = sum(shares[1:], shares[0])
    empty = total == 0
    total = jnp.where(empty, 1.0, total)
    weighted = [
        out * (share / total)[..., None].astype(out.dtype) for (out, _), share in zip(parts, shares, strict=True)
    ]
    return sum(weighted[1:], weighted[0]), jnp.where(empty, -jnp.inf, jnp.log(total) + top)
