"""Additive attention: logits from a small network instead of a dot product.

    u_ij = v . tanh(W_k e_j + W_q d_i)

for queries d and keys e. Neural Machine Translation by Jointly Learning to Align and Translate (Bahdanau et al., 2014,
arXiv:1409.0473, appendix A.1.2) averages the values with weights softmax(u); Pointer Networks (Vinyals et al., 2015,
arXiv:1506.03134, equation 3) use u itself as logits over the keys.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from layers.initializers import InitializerSpec, lecun_normal
from layers.linear import Linear
from layers.mixer import finite_padding
from layers.module import Module


class AdditiveAttention(Module):
    """Additive attention logits of queries and keys. Parameters: ``query``, ``key``, ``score`` (linear, without
    biases).
    """

    def __init__(
        self,
        features: int,
        *,
        hidden: int | None = None,
        kernel_init: InitializerSpec = lecun_normal,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args:
        features: features of queries and of keys.
        hidden: features inside the tanh; None for ``features``.
        kernel_init: initializer of all three kernels.
        """
        common = {"use_bias": False, "kernel_init": kernel_init, "dtype": dtype, "param_dtype": param_dtype}
        self.query = Linear(features, hidden or features, rngs=rngs, **common)
        self.key = Linear(features, hidden or features, rngs=rngs, **common)
        self.score = Linear(hidden or features, 1, rngs=rngs, **common)

    def __call__(self, queries: jax.Array, keys: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Logits of every key for every query.

        The tanh is computed for one query at a time and recomputed in the backward pass: memory grows with the number
        of logits, not with that times ``hidden``.

        Args:
          queries: (batch, queries, features).
          keys: (batch, keys, features).
          mask: bool (batch, keys), True for real keys; the others may hold anything.

        Returns:
          (batch, queries, keys), at least float32; minus infinity at masked keys.
        """
        e = self.key(finite_padding(keys, mask))
        wide = jnp.promote_types(e.dtype, jnp.float32)
        v = self.score.kernel[...][:, 0].astype(wide)

        @jax.checkpoint
        def scored(e: jax.Array, v: jax.Array, d: jax.Array) -> jax.Array:
            return jnp.tanh(e + d[:, None]) @ v

        e, d = e.astype(wide), jnp.moveaxis(self.query(queries), 1, 0).astype(wide)
        scores = jnp.moveaxis(lax.map(lambda d: scored(e, v, d), d), 0, 1)
        return scores if mask is None else jnp.where(mask[:, None], scores, -jnp.inf)
